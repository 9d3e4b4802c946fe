"""Image data read from folders: layouts, streaming and splits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import flat, random_pixels, write_image
from tutelage.data import Batches, CropsAndFlips, evaluation_batches, open_data
from tutelage.data.assemble import Reading
from tutelage.data.formats.folder import ImageFiles, load
from tutelage.errors import TutelageWarning


def test_images_are_read_from_one_folder_per_class(folder):
    data = open_data(f"folder:{folder}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.image_shape == (3, 16, 16)
    assert data.views == CropsAndFlips(pad=2, flip=True)
    for index, (name, i) in enumerate((name, i) for name in ("cat", "dog") for i in range(4)):
        with Image.open(folder / "train" / name / f"{i}.png") as image:
            np.testing.assert_array_equal(data.train.inputs[index], np.asarray(image))
    assert data.record == ({"source": "folder", "test_from": "test", "resized_to": None, "in_memory": True},)


def test_supported_formats_and_skipped_files(folder):
    smooth = np.add.outer(np.arange(16), np.arange(16))[..., None].repeat(3, 2).astype(np.uint8) * 6
    for name, options in (
        ("a.jpg", {"quality": 95}),
        ("b.JPEG", {"quality": 95, "format": "JPEG"}),
        ("c.webp", {"lossless": True}),
        ("d.bmp", {}),
        ("e.jfif", {"quality": 95, "format": "JPEG"}),
        ("F.PNG", {}),
    ):
        write_image(folder / "train" / "ant" / name, smooth, **options)
    (folder / "train" / "ant" / ".hidden.png").write_bytes(b"no image")
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    (folder / "train" / "ant" / "deeper.png").mkdir()
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "labels.csv").touch()
    with pytest.warns(TutelageWarning, match=r"passed over: 1 \.csv, 1 \.txt, 1 folder, 1 hidden image"):
        data = open_data(f"folder:{folder}")
    assert data.classes == ("ant", "cat", "dog")
    assert data.record[0]["passed_over"] == {".csv": 1, ".txt": 1, "folder": 1, "hidden image": 1}
    assert (data.train.labels == 0).sum() == 6
    for image in data.train.inputs[:6]:
        np.testing.assert_allclose(image.numpy().astype(float), smooth, atol=6)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_folder_is_read_and_replaces_a_missing_test_folder(folder, name):
    write_image(folder / name / "dog" / "0.png", random_pixels(1))
    data = open_data(f"folder:{folder}")
    assert data.validation.labels.tolist() == [1]
    np.testing.assert_array_equal(data.validation.inputs[0], random_pixels(1))
    (folder / "test").rename(folder / "kept")
    with pytest.warns(TutelageWarning, match="no test split, so its validation split is the test split"):
        data = open_data(f"folder:{folder}")
    assert data.validation is None
    assert data.test.labels.tolist() == [1]
    assert data.record[0]["test_from"] == "validation"


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_batches_equal_those_from_memory(folder, workers):
    memory, files = load(folder), load(folder, reading=Reading(in_memory_bytes=1000))
    assert memory.train.in_memory
    assert not files.train.in_memory
    assert files.record[0]["in_memory"] is False
    assert isinstance(files.train.inputs, ImageFiles)
    options = {"batch_size": 3, "views": memory.views, "seed": 5}
    pairs = [
        (
            Batches(memory.train, **options).epoch(1),
            Batches(files.train, workers=workers, **options).epoch(1),
        ),
        (evaluation_batches(memory.test, batch_size=3), evaluation_batches(files.test, batch_size=3, workers=workers)),
    ]
    generator = torch.get_rng_state()
    for expected, streamed in pairs:
        steps = 0
        for a, b in zip(expected, streamed, strict=True):
            steps += 1
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
            assert torch.equal(a.index, b.index)
        assert steps == 2
    assert torch.equal(torch.get_rng_state(), generator)  # reading must not change the global random state


def test_streamed_files_support_hold_out_pickling_and_statistics(folder):
    memory, files = load(folder), load(folder, reading=Reading(in_memory_bytes=0))
    np.testing.assert_allclose(memory.mean_std, files.mean_std, rtol=1e-9)
    part = files.hold_out(0.5).validation
    copy = pickle.loads(pickle.dumps(part.inputs))
    assert torch.equal(copy[torch.arange(4)], memory.hold_out(0.5).validation.inputs)
    assert copy[torch.arange(0)].shape == (0, 16, 16, 3)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_class_folders_without_splits_are_split_by_class_deterministically(tmp_path, memory):
    flat(tmp_path, 20, 10, 1)
    with pytest.warns(TutelageWarning, match=r"no test split: 6 of its 31 samples.*--test 0\.2"):
        data = load(tmp_path, reading=Reading(in_memory_bytes=memory))
    assert data.classes == ("class 0", "class 1", "class 2")
    assert data.test.labels.bincount(minlength=3).tolist() == [4, 2, 0]
    assert data.train.labels.bincount().tolist() == [16, 8, 1]
    assert sorted([*data.train.index.tolist(), *data.test.index.tolist()]) == list(range(31))
    number = int(data.test.index[0])
    np.testing.assert_array_equal(data.test.inputs[torch.tensor([0])][0], random_pixels(number, (8, 8, 3)))
    assert {**data.record[0], "in_memory": None} == {
        "source": "folder",
        "test_from": "train",
        "test_share": 0.2,
        "resized_to": None,
        "in_memory": None,
    }
    copy = load(tmp_path, test=0.2, reading=Reading(in_memory_bytes=memory))  # an explicit share gives no warning
    assert torch.equal(copy.test.index, data.test.index)


def test_share_of_the_test_split_can_be_set(tmp_path, refused):
    flat(tmp_path, 10, 10)
    assert len(open_data(f"folder:{tmp_path}", test=0.5).test) == 10
    for share in (0, 1, -0.1, float("nan")):
        with refused("between 0 and 1", share):
            open_data(f"folder:{tmp_path}", test=share)


def test_test_share_is_refused_for_a_folder_with_a_test_split(folder, refused):
    with refused("a test split already", "0.3"):
        open_data(f"folder:{folder}", test=0.3)


def test_classes_too_small_to_split_are_refused(tmp_path, refused):
    flat(tmp_path, 1, 1)
    with refused(tmp_path, "no test split", "too small", "add a test split"):
        open_data(f"folder:{tmp_path}")


def test_nested_folders_are_not_read_as_classes(tmp_path, refused):
    flat(tmp_path / "images" / "all", 2, 2)
    with refused("no image", "2 folder", "CLASS/"):
        open_data(f"folder:{tmp_path / 'images'}")


def test_novel_split_has_its_own_classes(tmp_path, refused):
    for number, path in enumerate(("train/b", "train/d", "val/c", "novel/a", "novel/e")):
        write_image(tmp_path / path / "1.png", random_pixels(number))
    data = open_data(f"folder:{tmp_path}")
    assert data.classes == ("b", "d", "a", "c", "e")
    assert [data.train.labels.tolist(), data.test.labels.tolist()] == [[0, 1], [2, 4]]
    assert data.validation.labels.tolist() == [3]
    write_image(tmp_path / "novel" / "d" / "1.png", random_pixels(0))
    with refused("novel/d is a class that", "train has too", "name the folder test"):
        open_data(f"folder:{tmp_path}")
    write_image(tmp_path / "test" / "b" / "1.png", random_pixels(0))
    with refused(f"{tmp_path / 'test'} and {tmp_path / 'novel'} are both test splits"):
        open_data(f"folder:{tmp_path}")


def test_class_may_be_named_novel(tmp_path):
    for name in ("novel", "poem"):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.png", random_pixels(number))
    assert open_data(f"folder:{tmp_path}", test=0.2).classes == ("novel", "poem")
