"""Data sets in ``.npz`` archives."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.archives import ARRAYS, RNG
from tutelage.data import CropsAndFlips, open_data


def test_arrays_are_read_back(save_archive):
    data = open_data(save_archive(classes=np.array(["a", "b", "c", "d"]), train_index=np.arange(8)))
    np.testing.assert_array_equal(data.train.inputs, ARRAYS["train_images"])
    np.testing.assert_array_equal(data.test.inputs, ARRAYS["test_images"])
    assert data.train.labels.dtype == torch.int64
    assert data.train.labels.tolist() == [0, 1, 2, 3] * 2
    assert data.classes == ("a", "b", "c", "d")
    assert data.views == CropsAndFlips(pad=2, flip=True)
    assert data.validation is None
    assert data.record == ()


def test_alternative_names_grey_images_and_a_validation_split(tmp_path):
    grey = ARRAYS["train_images"][..., 0]
    column = np.arange(8, dtype=np.uint8)[:, None] % 3
    np.savez(
        tmp_path / "d.npz",
        x_train=grey,
        y_train=column,
        x_val=grey[:3],
        y_val=column[:3],
        x_test=grey,
        y_test=column,
    )
    data = open_data(f"npz:{tmp_path / 'd.npz'}")
    assert data.image_shape == (1, 16, 16)
    assert data.views == CropsAndFlips(pad=2, flip=False)
    assert data.classes == ("0", "1", "2")
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(data.validation.inputs.squeeze(3), grey[:3])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_float_images_become_bytes_and_this_is_recorded(save_archive, dtype):
    floats = (ARRAYS["train_images"] / 255).astype(dtype)
    data = open_data(save_archive(train_images=floats))
    np.testing.assert_array_equal(data.train.inputs, ARRAYS["train_images"])
    assert data.record == ({"source": "npz", "rounded_to_uint8": ["train_images"]},)


def test_soft_and_absent_labels(save_archive):
    soft = RNG.dirichlet(np.ones(4), 8)
    data = open_data(save_archive(train_labels=soft))
    assert data.train.labels.dtype == torch.float32
    np.testing.assert_allclose(data.train.labels, soft, rtol=1e-6)
    assert data.classes == tuple("0123")
    partly = open_data(save_archive(train_labels=np.array([-1, 1, 2, 3, -1, 1, 2, 3])))
    assert partly.train.labels.tolist() == [-1, 1, 2, 3, -1, 1, 2, 3]


def with_value(index: tuple[int, ...], value: float) -> np.ndarray:
    floats = ARRAYS["train_images"].astype(np.float32) / 255
    floats[index] = value
    return floats


SOFT = np.full((8, 4), 0.25)


def soft_with(value: float) -> np.ndarray:
    labels = SOFT.copy()
    labels[5, 2] = value
    return labels


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        (
            {"train_images": with_value((2, 0, 5, 1), np.nan)},
            ("train_images", "nan at [2, 0, 5, 1]", "[0, 1]"),
        ),
        ({"train_images": with_value((0, 1, 0, 0), np.inf)}, ("inf at [0, 1, 0, 0]", "uint8")),
        ({"train_images": with_value((7, 0, 0, 0), -0.5)}, ("-0.5 at [7, 0, 0, 0]", "divide by 255")),
        ({"train_images": ARRAYS["train_images"].astype(float)}, ("divide by 255",)),
        ({"train_images": ARRAYS["train_images"].astype(np.int64)}, ("int64", "uint8")),
        (
            {"train_images": ARRAYS["train_images"].transpose(0, 3, 1, 2)},
            ("(8, 3, 16, 16)", ".transpose(0, 2, 3, 1)"),
        ),
        ({"train_images": ARRAYS["train_images"][0, 0]}, ("(16, 3)", "(N, H, W, C)")),
        ({"train_images": ARRAYS["train_images"][:, :0]}, ("(8, 0, 16, 3)", "(N, H, W, C)")),
        ({"train_images": ARRAYS["train_images"][:5]}, ("train split", "(5, 16, 16, 3)", "(8,)")),
        (
            {"train_images": ARRAYS["train_images"][:0], "train_labels": np.arange(0)},
            ("train split", "empty"),
        ),
        ({"test_images": ARRAYS["test_images"][:, :8]}, ("different shapes", "(8, 16, 3)")),
        ({"test_images": ARRAYS["test_images"][:0], "test_labels": np.arange(0)}, ("test split", "empty")),
        ({"train_labels": np.array([0, 1, 2, -2] * 2)}, ("train_labels", "-2 at [3]", "-1 for no label")),
        ({"train_labels": np.array([0, 1, 2, 10**9] * 2)}, ("1000000000 at [3]", "below 100000")),
        ({"train_labels": np.array([0, 1, 2, 2**63] * 2, np.uint64)}, ("9223372036854775808 at [3]",)),
        ({"train_labels": np.arange(8.0)}, ("float64", "(8,)", "integers")),
        ({"train_labels": np.eye(4, dtype=int)[[0, 1, 2, 3] * 2]}, ("int64", "(8, 4)", "integers")),
        ({"train_labels": np.array(list("abcdabcd"))}, ("<U1", "integers")),
        ({"train_labels": soft_with(0.3)}, ("train_labels", "1.05", "[5]", "sums to 1")),
        ({"train_labels": soft_with(-0.25)}, ("-0.25 at [5, 2]", "0 or more")),
        ({"train_labels": soft_with(np.nan)}, ("nan at [5, 2]", "probabilities")),
        ({"test_labels": np.array([0, 1, 2, 4])}, ("test split", "from 0 to 4", "4 classes")),
        ({"classes": np.array(["a", "b", "c"])}, ("from 0 to 3", "3 classes")),
        ({"classes": np.eye(3)}, ("classes", "float64", "(3, 3)", "names")),
        ({"test_images": None, "test_labels": None}, ("no test split", "add test_images", "train_labels")),
        ({"test_labels": None}, ("test_images without test_labels", "add it")),
        (
            {"train_images": None, "train_labels": None},
            ("no train split", "add train_images", "test_images, test_labels"),
        ),
        ({"train_images": np.array([{}] * 8, dtype=object)}, ("train_images", "not as Python objects")),
        ({"classes": np.array(["a", None], dtype=object)}, ("classes", "not as Python objects")),
    ],
)
def test_unusable_array_is_named(save_archive, refused, changes, pieces):
    spec = save_archive(**changes)
    with refused(*pieces):
        open_data(spec)


def test_cifar10_test_split_has_its_known_statistics(tmp_path):
    data_folder = Path(__file__).parents[3] / "shared" / "data"
    file = Path(os.environ.get("TUTELAGE_DATA", data_folder)) / "cifar10-test.npz"
    if not file.is_file():
        pytest.skip("no cifar10-test.npz at TUTELAGE_DATA or in ../shared/data")
    with np.load(file, allow_pickle=False) as archive:  # mosaics of 32x32 tiles, concatenated encoded images
        content, ends = archive["blob"].tobytes(), archive["offsets"].tolist()
        labels, names = archive["labels"], archive["classes"].tobytes().decode().split("\n")
        images = []
        for start, end, (down, across) in zip(ends[:-1], ends[1:], archive["grid"].tolist(), strict=True):
            mosaic = np.asarray(Image.open(io.BytesIO(content[start:end])).convert("RGB"))
            tiles = mosaic.reshape(down, 32, across, 32, 3).transpose(0, 2, 1, 3, 4)
            images.append(tiles.reshape(-1, 32, 32, 3))
    pixels = np.concatenate(images)
    halves = {
        "train_images": pixels,
        "train_labels": labels,
        "test_images": pixels[:9],
        "test_labels": labels[:9],
    }
    np.savez(tmp_path / "cifar.npz", **halves, classes=np.array(names))
    data = open_data(f"npz:{tmp_path / 'cifar.npz'}")
    assert data.classes[:2] == ("airplane", "automobile")
    assert torch.bincount(data.train.labels).tolist() == [1000] * 10
    assert data.views.count == 162
    mean, std = data.mean_std
    np.testing.assert_allclose(mean, [0.4942, 0.4851, 0.4504], atol=1e-4)
    np.testing.assert_allclose(std, [0.2467, 0.2429, 0.2616], atol=1e-4)


def test_fortran_order_arrays_are_read_back(save_archive):
    by_column = np.asfortranarray(ARRAYS["train_images"])
    np.testing.assert_array_equal(open_data(save_archive(train_images=by_column)).train.inputs, ARRAYS["train_images"])


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"classes": np.array(["crane", "dog", "crane", "cat"])}, ("'crane'", "classes 0, 2", "its own name")),
        ({"train_labels": np.arange(8.0)[:, None]}, ("train_labels", "regression", "save classes as integers")),
        (
            {"train_labels": RNG.integers(0, 2, (8, 4)) | np.eye(8, 4, dtype=int)},
            ("test_labels", "several labels a sample"),
        ),
        ({"train_images": np.zeros((8, 4, 16, 16), np.uint8)}, ("(8, 4, 16, 16)", "NHWC")),
        ({"train_images": np.zeros((8, 1, 28, 28), np.uint8)}, ("(8, 1, 28, 28)", "NHWC")),
        ({"train_images": np.zeros((8, 16, 16, 7), np.uint8)}, ("7 channels", "NHWC")),
    ],
)
def test_invalid_names_targets_and_axes_are_named(save_archive, refused, changes, pieces):
    with refused(*pieces):
        open_data(save_archive(**changes))


def test_error_names_labels_that_start_at_1(save_archive, refused):
    names = np.array(["a", "b", "c", "d"])
    with refused("train split", "from 1 to 4", "they start at 1", "subtract 1"):
        open_data(save_archive(train_labels=ARRAYS["train_labels"] + 1, classes=names))


def test_novel_split_has_its_own_classes(save_archive, refused):
    novel = {"test_images": None, "test_labels": None, "novel_images": ARRAYS["test_images"]}
    labels = np.array([4, 5, 5, 4])
    data = open_data(save_archive(**novel, novel_labels=labels, novel_index=np.arange(3, 7)))
    assert data.classes == ("0", "1", "2", "3", "4", "5")
    assert data.test.labels.tolist() == labels.tolist()
    assert data.test.index.tolist() == [3, 4, 5, 6]
    assert open_data(save_archive(**novel, novel_labels=labels, classes=np.array(list("abcdef")))).num_classes == 6
    with refused("novel_labels of", "have the class 3, which train_labels have too", "classes from 4"):
        open_data(save_archive(**novel, novel_labels=labels - 1))
    with refused("has test_images and novel_images", "keep one"):
        open_data(save_archive(novel_images=ARRAYS["test_images"], novel_labels=labels))
    with refused("has novel_labels without novel_images"):
        open_data(save_archive(test_images=None, test_labels=None, novel_labels=labels))
