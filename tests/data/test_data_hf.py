"""Data sets in the format of the Hugging Face hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data import Batches, CropsAndFlips, open_data
from tutelage.data.assemble import Reading
from tutelage.errors import TutelageWarning


def test_error_without_the_extra_names_the_remedy(monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("hf: needs the extra: pip install 'tutelage[hf]'"):
        open_data("hf:somebody/something")


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


Saved = Callable[..., str]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def save_dataset(datasets: Any, tmp_path: Path) -> Saved:
    """A function that writes a data set in the format of the hub with the given labels per split."""

    def save(splits: dict[str, dict[str, list[int]]], names: dict[str, list[str]]) -> str:
        for split, columns in splits.items():
            features = {
                column: datasets.ClassLabel(names=names[column]) if column in names else datasets.Value("int64")
                for column in columns
            }
            size = len(next(iter(columns.values())))
            dataset = datasets.Dataset.from_dict(
                {"img": [Image.fromarray(pixels(i)) for i in range(size)], **columns},
                features=datasets.Features({"img": datasets.Image(), **features}),
            )
            dataset.to_parquet(tmp_path / "repo" / f"{split}-00000.parquet")
        return f"hf:{tmp_path / 'repo'}"

    return save


def test_images_and_labels_are_read_from_their_columns(save_dataset):
    data = open_data(save_dataset({"train": {"y": [0, 1, 1, 0]}, "test": {"y": [1, 0]}}, {"y": ["cat", "dog"]}))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    for i in range(4):
        np.testing.assert_array_equal(data.train.inputs[i], pixels(i))
    assert data.views == CropsAndFlips(pad=1, flip=True)
    assert data.validation is None
    entry = data.record[0]
    assert (entry["source"], entry["image_column"], entry["label_column"]) == ("hf", "img", "y")


def test_validation_split_replaces_an_unlabelled_test_split(save_dataset):
    spec = save_dataset(
        {"train": {"y": [0, 1]}, "validation": {"y": [1]}, "test": {"y": [-1, -1]}}, {"y": ["cat", "dog"]}
    )
    with pytest.warns(TutelageWarning, match="no test split, so its validation split is the test split"):
        data = open_data(spec)
    assert data.test.labels.tolist() == [1]
    assert data.record[0]["test_from"] == "validation"


@pytest.mark.parametrize(("coarse", "expected"), [("coarse", "fine"), ("label", "label")])
def test_column_named_label_or_with_most_classes_is_used(save_dataset, coarse, expected):
    columns = {coarse: [0, 0, 1], "fine": [0, 1, 2]}
    names = {coarse: ["a", "b"], "fine": ["x", "y", "z"]}
    data = open_data(save_dataset({"train": columns, "test": columns}, names))
    assert data.record[0]["label_column"] == expected
    assert data.classes == tuple(names[expected])
    assert data.train.labels.tolist() == columns[expected]


def test_large_data_set_streams_the_same_batches(save_dataset, tmp_path):
    from tutelage.data.formats import hf

    spec = save_dataset({"train": {"y": [0, 1, 1, 0]}, "test": {"y": [1, 0]}}, {"y": ["cat", "dog"]})
    memory, files = open_data(spec), hf.load(str(tmp_path / "repo"), reading=Reading(in_memory_bytes=0))
    assert not files.train.in_memory
    expected = Batches(memory.train, batch_size=2).epoch(0)
    streamed = Batches(files.train, batch_size=2, workers=1).epoch(0)
    for a, b in zip(expected, streamed, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


@pytest.mark.parametrize(
    ("splits", "names", "pieces"),
    [
        ({"test": {"y": [0]}}, {"y": ["cat"]}, ("no split train", "test")),
        ({"train": {"y": [0, 1]}}, {"y": ["cat", "dog"]}, ("no labelled split test", "train")),
        ({"train": {"y": [0]}, "test": {"y": [0]}}, {}, ("no column of class labels", "img, y")),
    ],
)
def test_incomplete_data_sets_are_refused(save_dataset, refused, splits, names, pieces):
    spec = save_dataset(splits, names)
    with refused(spec, *pieces):
        open_data(spec)


@pytest.mark.usefixtures("datasets")
def test_missing_data_set_is_refused(refused):
    with refused("hf:no/such-thing", "check the name and the connection"):
        open_data("hf:no/such-thing")


def test_row_stamps_depend_on_the_fingerprint_of_the_table(save_dataset, tmp_path):
    from tutelage.data.formats import hf

    save_dataset({"train": {"y": [0, 1, 1, 0]}, "test": {"y": [1, 0]}}, {"y": ["cat", "dog"]})
    first, second = (hf.load(str(tmp_path / "repo"), reading=Reading(in_memory_bytes=0)) for _ in range(2))
    assert first.train.inputs.fingerprint(0) == second.train.inputs.fingerprint(0) != first.train.inputs.fingerprint(1)
    assert first.fingerprint == second.fingerprint
    save_dataset({"train": {"y": [0, 1, 1, 0, 1]}, "test": {"y": [1, 0]}}, {"y": ["cat", "dog"]})
    assert hf.load(str(tmp_path / "repo"), reading=Reading(in_memory_bytes=0)).train.inputs.fingerprint(
        0
    ) != first.train.inputs.fingerprint(0)
