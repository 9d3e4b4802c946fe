"""Partly and fully unlabelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data import (
    Data,
    LongTail,
    MultiLabel,
    PowerLawImbalance,
    Quantities,
    StepImbalance,
    Subset,
    SymmetricNoise,
    Trusted,
    Vectors,
    open_data,
)
from tutelage.errors import TutelageWarning


def write_images(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_flat_folder_of_images_has_no_labels_and_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, 10)
    with pytest.warns(TutelageWarning, match="2 of its 10 samples"):
        data = open_data(f"folder:{tmp_path}")
    assert data.classes == ()
    assert (len(data.train), len(data.test)) == (8, 2)
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == {-1}
    assert sorted({*data.train.index.tolist(), *data.test.index.tolist()}) == list(range(10))
    second = open_data(f"folder:{tmp_path}", test=0.2)
    assert torch.equal(second.test.inputs, data.test.inputs)  # type: ignore[arg-type]
    assert data.summary()["counts"] == {"train": [], "test": []}


@pytest.mark.parametrize("layout", ["train", "unlabelled", "unlabeled"])
@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.filterwarnings("ignore:.*its validation split is the test split")
def test_unlabelled_training_images_with_labelled_test_images(layout: str, part: str, tmp_path: Path) -> None:
    write_images(tmp_path / layout, 5)
    write_images(tmp_path / part / "cat", 2, 10)
    write_images(tmp_path / part / "ant", 1, 20)
    data = open_data(f"folder:{tmp_path}")
    assert data.classes == ("ant", "cat")
    assert data.train.labels.tolist() == [-1] * 5
    assert data.test.labels.tolist() == [0, 1, 1]
    for index in range(5):
        with Image.open(tmp_path / layout / f"{index}.png") as image:
            np.testing.assert_array_equal(data.train.inputs[torch.tensor([index])][0], np.asarray(image))


def test_unlabelled_images_are_appended_to_labelled_training_images(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 2)
    write_images(tmp_path / "train" / "dog", 2, 2)
    write_images(tmp_path / "unlabelled", 3, 4)
    write_images(tmp_path / "train" / "unlabelled", 1, 7)
    write_images(tmp_path / "test" / "dog", 1, 8)
    data = open_data(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1, -1, -1, -1, -1]
    assert len({row.numpy().tobytes() for row in data.train.inputs}) == 8  # type: ignore[union-attr]


def test_automatic_test_split_contains_only_labelled_images(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 5)
    write_images(tmp_path / "dog", 5, 5)
    write_images(tmp_path / "unlabelled", 6, 10)
    data = open_data(f"folder:{tmp_path}", test=0.2)
    assert data.classes == ("cat", "dog")
    assert sorted(data.test.labels.tolist()) == [0, 1]
    assert (data.train.labels == -1).sum() == 6


def test_test_split_may_be_unlabelled(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 2)
    write_images(tmp_path / "train" / "dog", 2, 2)
    write_images(tmp_path / "test", 3, 4)
    data = open_data(f"folder:{tmp_path}")
    assert data.test.labels.tolist() == [-1] * 3


def test_images_outside_class_folders_are_skipped_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 2)
    write_images(tmp_path / "train", 3, 2)
    write_images(tmp_path / "test" / "cat", 1, 8)
    with pytest.warns(TutelageWarning, match=r"passed over: 3 \.png"):
        assert len(open_data(f"folder:{tmp_path}").train) == 2


def test_empty_folder_is_refused(tmp_path: Path, refused: Any) -> None:
    with refused("has no class folders and no images", "unlabelled/"):
        open_data(f"folder:{tmp_path}")
    write_images(tmp_path / "test" / "cat", 1)
    (tmp_path / "unlabelled").mkdir()
    with refused("unlabelled", "has no image in it"):
        open_data(f"folder:{tmp_path}")


def test_fingerprint_of_labelled_folders_is_unchanged(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 2)
    write_images(tmp_path / "test" / "cat", 1, 8)
    before = open_data(f"folder:{tmp_path}")
    assert before.fingerprint == open_data(f"folder:{tmp_path}").fingerprint
    write_images(tmp_path / "unlabelled", 1, 9)
    assert before.fingerprint != open_data(f"folder:{tmp_path}").fingerprint


# --- arrays


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)


def test_arrays_may_be_unlabelled() -> None:
    data = Data.from_arrays((images(6), None), (images(3), np.array([0, 2, 1])))
    assert data.classes == ("0", "1", "2")
    assert data.train.labels.tolist() == [-1] * 6
    assert Data.from_arrays((images(6), None), (images(3), None)).classes == ()
    assert Data.from_arrays((images(6), -np.ones(6, int)), (images(3), None)).classes == ()
    assert len(Data.from_arrays((images(10), None), test_share=0.3).test) == 3


def test_multilabel_targets_are_required(refused: Any) -> None:
    with refused("several labels a sample cannot be left out", "-1"):
        Data.from_arrays((np.zeros((4, 2)), None), modality=Vectors(), targets=MultiLabel())


def test_class_names_are_set_only_once() -> None:
    data = Data.from_arrays((images(6), None), (images(3), None))
    named_data = data.with_class_names(("a", "b"))
    assert (named_data.classes, named_data.num_classes) == (("a", "b"), 2)
    assert named_data.with_class_names(("c",)) is named_data
    assert named_data.fingerprint != data.fingerprint


def test_nothing_is_held_out_of_unlabelled_data() -> None:
    data = Data.from_arrays((images(20), None), (images(3), np.array([0, 2, 1])))
    assert data.hold_out(0.5) is data
    partial_labels = np.full(20, -1)
    partial_labels[:6] = np.arange(6) % 3
    assert Data.from_arrays((images(20), partial_labels), (images(3), None)).hold_out(0.5).validation is not None


def test_data_objects_made_in_python_may_be_unlabelled() -> None:
    assert open_data((images(10), None), test=0.2).classes == ()
    data = open_data(((images(6), None), (images(3), np.array([0, 2, 1]))))
    assert (len(data.train), data.classes) == (6, ("0", "1", "2"))


CONDITIONS = [Subset(2), Trusted(1), LongTail(0.5), StepImbalance(0.5, 0.5), PowerLawImbalance(0.5)]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: type(condition).__name__)
@pytest.mark.parametrize("test_labels", [None, np.array([0, 2, 1])])
def test_conditions_that_select_by_class_require_labels(condition: Any, test_labels: Any, refused: Any) -> None:
    data = Data.from_arrays((images(20), None), (images(3), test_labels))
    with refused(type(condition).__name__, "no training sample of arrays has a label", "leave it out"):
        condition(data)


@pytest.mark.parametrize(
    "condition", [*CONDITIONS, SymmetricNoise(0.2)], ids=lambda condition: type(condition).__name__
)
def test_conditions_on_classes_refuse_other_targets(condition: Any, refused: Any) -> None:
    pair = (np.zeros((8, 2)), np.arange(16.0).reshape(8, 2) / 5)
    data = Data.from_arrays(pair, pair, modality=Vectors(), targets=Quantities())
    with refused(type(condition).__name__, "one class for each sample", "quantities"):
        condition(data)
