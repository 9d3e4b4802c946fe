"""Inference of modality and targets of an ``.npz`` file from dtypes and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data import Classes, Masks, MultiLabel, Pixels, Quantities, Strings, Vectors, open_data

RNG = np.random.default_rng(5)
VECTORS = RNG.normal(size=(8, 5))
SEVERAL = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]] * 2)
SOFT = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.2, 0.7]] * 2)


def save_arrays(folder: Path, labels: np.ndarray | None, inputs: np.ndarray = VECTORS, **other_arrays: Any) -> str:
    arrays = {"x_train": inputs, "x_test": inputs[:3], **other_arrays}
    if labels is not None:
        arrays |= {"y_train": labels, "y_test": labels[:3]}
    np.savez(folder / "d.npz", **arrays)
    return f"npz:{folder / 'd.npz'}"


def test_a_class_for_each_pixel_is_inferred(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (8, 6, 4, 3), dtype=np.uint8)
    masks = RNG.integers(0, 3, (8, 6, 4), dtype=np.uint8)
    masks[0, 0] = 255
    data = open_data(save_arrays(tmp_path, masks, images))
    assert data.targets == Masks()
    assert data.num_classes == 3
    assert data.train.labels[0, 0].tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("labels", "kind", "shape", "classes", "counts"),
    [
        (np.arange(8) % 3, Classes(), (8,), 3, [3, 3, 2]),
        ((np.arange(8) % 3)[:, None], Classes(), (8,), 3, [3, 3, 2]),
        (SOFT, Classes(), (8, 3), 3, [4, 0, 2]),
        (SEVERAL, MultiLabel(), (8, 3), 3, [4, 4, 4]),
        (SEVERAL.astype(bool), MultiLabel(), (8, 3), 3, [4, 4, 4]),
        (SEVERAL.astype(np.float32), MultiLabel(), (8, 3), 3, [4, 4, 4]),
        (np.where(SEVERAL == 0, -1, 1), MultiLabel(), (8, 3), 3, [4, 4, 4]),
        (np.linspace(-1, 1, 8), Quantities(), (8, 1), 1, [8]),
        (np.array([0.5, np.nan] * 4)[:, None], Quantities(), (8, 1), 1, [4]),
        (VECTORS[:, :2], Quantities(), (8, 2), 2, [8, 8]),
    ],
)
def test_targets_are_inferred_from_dtype_and_shape_of_labels(
    labels: np.ndarray, kind: Any, shape: Any, classes: int, counts: list[int], tmp_path: Path
) -> None:
    data = open_data(save_arrays(tmp_path, labels))
    assert data.targets == kind
    assert data.test.targets == kind
    assert tuple(data.train.labels.shape) == shape
    assert data.num_classes == classes
    assert data.summary()["counts"]["train"] == counts
    assert data.modality == Vectors()
    assert data.input_shape == (5,)
    assert data.record == ()
    torch.testing.assert_close(data.train.inputs, torch.from_numpy(VECTORS).float())


@pytest.mark.parametrize(
    ("labels", "pieces"),
    [
        (np.arange(8.0), ("float64 of shape (8,)", "save classes as integers", "targets='regression'")),
        (np.array([[1.0, 2.0], [3.0, 4.0]] * 4), ("(8, 2)", "no distributions", "targets='regression'")),
        (np.full((8, 2), 0.2), ("no distributions", "targets='regression'")),
        (np.eye(4, dtype=int)[np.arange(8) % 4], ("one-hot", ".argmax(1)", "targets='multi_label'")),
        (np.arange(16).reshape(8, 2), ("int64", "targets='strings' or targets='regression'")),
    ],
)
def test_ambiguous_labels_are_refused_with_the_remedy(
    labels: np.ndarray, pieces: Any, tmp_path: Path, refused: Any
) -> None:
    with refused("y_train", "d.npz", *pieces):
        open_data(save_arrays(tmp_path, labels))


@pytest.mark.parametrize(
    ("labels", "name", "kind", "shape"),
    [
        (np.arange(8.0), "regression", Quantities(), (8, 1)),
        (np.full((8, 2), 0.2), "regression", Quantities(), (8, 2)),
        (np.arange(16).reshape(8, 2), "regression", Quantities(), (8, 2)),
        (np.arange(16).reshape(8, 2), "strings", Strings(), (8, 2)),
        (np.eye(4, dtype=int)[np.arange(8) % 4], "multi_label", MultiLabel(), (8, 4)),
        (SOFT, "classification", Classes(), (8, 3)),
    ],
)
def test_entry_targets_selects_the_targets(
    labels: np.ndarray, name: str, kind: Any, shape: Any, tmp_path: Path
) -> None:
    data = open_data(save_arrays(tmp_path, labels, targets=np.array(name)))
    assert (data.targets, tuple(data.train.labels.shape)) == (kind, shape)


def test_unknown_value_of_entry_targets_is_refused(tmp_path: Path, refused: Any) -> None:
    with refused("'multilabel'", "did you mean 'multi_label'"):
        open_data(save_arrays(tmp_path, SEVERAL, targets=np.array("multilabel")))
    with refused("targets of", "it is one text"):
        open_data(save_arrays(tmp_path, SEVERAL, targets=np.array(["multi_label"])))
    with refused("y_train", "value 0.5", "or -1 for unknown"):
        open_data(save_arrays(tmp_path, SEVERAL - 0.5, targets=np.array("multi_label")))


def test_images_are_recognised_with_any_labels(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
    data = open_data(save_arrays(tmp_path, np.linspace(0, 1.5, 8), images, classes=np.array(["age"])))
    assert (data.modality, data.targets, data.classes) == (Pixels(), Quantities(), ("age",))
    assert data.views.count > 1


def test_two_dimensional_integer_inputs_are_refused(tmp_path: Path, refused: Any) -> None:
    with refused("x_train", "int64 of shape (8, 5)", "vectors are (N, D) floats"):
        open_data(save_arrays(tmp_path, np.arange(8), np.ones((8, 5), int)))


def test_labels_may_be_omitted_from_the_training_split_or_all_splits(tmp_path: Path, refused: Any) -> None:
    data = open_data(save_arrays(tmp_path, None))
    assert data.classes == ()
    assert data.train.labels.tolist() == [-1] * 8
    data = open_data(save_arrays(tmp_path, None, y_test=np.array([0, 2, 1])))
    assert (data.classes, data.test.labels.tolist()) == (("0", "1", "2"), [0, 2, 1])
    with refused("x_test without y_test", "add it"):
        open_data(save_arrays(tmp_path, None, y_train=np.arange(8)))
    with refused("x_train without y_train", "y_trian"):  # misspelt, so it is not recognised
        open_data(save_arrays(tmp_path, None, y_trian=np.arange(8), y_test=np.array([0, 2, 1])))
