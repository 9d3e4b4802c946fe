"""Fingerprints of data sets: equal only if a run on one data set is valid for the other."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tutelage
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.data.assemble import Reading
from tutelage.data.formats.folder import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for name in ("cat", "dog"):
            for number in range(count):
                file = tmp_path / "images" / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


def test_first_half_of_fingerprint_equals_that_of_older_versions():
    train = open_data("digits").train
    before = hashlib.sha256(train.labels.numpy().tobytes())
    before.update(train.inputs.numpy().data)
    fingerprint = open_data("digits").fingerprint
    assert fingerprint[:16] == before.hexdigest()[:16]
    assert len(fingerprint) == 32
    assert fingerprint == open_data("digits").fingerprint


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed[3] = changed[3].logical_not() if changed.dtype == torch.bool else (changed[3] + 1) % 4
    return changed


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("field", ["inputs", "labels", "index", "clean_labels"])
def test_fingerprint_depends_on_every_array_of_every_split(tiny_data: Data, part: str, field: str):
    split = tiny_data.splits[part]
    other = replace(split, **{field: flipped(getattr(split, field))})
    assert replace(tiny_data, **{part: other}).fingerprint != tiny_data.fingerprint


def test_fingerprint_depends_on_classes_views_trusted_labels_and_shape(tiny_data: Data):
    train = tiny_data.train
    trusted = torch.zeros(len(train), dtype=torch.bool)
    variants = [
        replace(tiny_data, classes=("a", "b", "c", "e")),
        replace(tiny_data, views=CropsAndFlips(pad=2)),
        replace(tiny_data, validation=None),
        replace(tiny_data, train=replace(train, trusted=trusted)),
        replace(tiny_data, train=replace(train, trusted=flipped(trusted))),
        Data(
            tiny_data.name,
            tiny_data.classes,
            **{key: replace(split, inputs=split.inputs.view(-1, 4, 16, 1)) for key, split in tiny_data.splits.items()},
            views=tiny_data.views,
        ),
    ]
    assert len({data.fingerprint for data in (tiny_data, *variants)}) == len(variants) + 1
    assert replace(tiny_data, name="renamed").fingerprint == tiny_data.fingerprint


@pytest.mark.parametrize("part", ["train", "test"])
def test_fingerprint_of_files_depends_on_modification_times(folder: Path, part: str):
    data = load(folder, reading=Reading(in_memory_bytes=0))
    before = data.fingerprint
    assert load(folder, reading=Reading(in_memory_bytes=0)).fingerprint == before
    file = folder / part / "dog" / "2.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert data.fingerprint != before  # also for data opened before


def test_fingerprint_of_images_without_modification_times_depends_on_pixels(folder: Path):
    class Unstamped:
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        @property
        def shape(self) -> tuple[int, ...]:
            return tuple(self.images.shape)

        def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
            return self.images[index]

        def fingerprint(self, index: int) -> None:
            return None

    data = load(folder)
    unstamped = replace(data, train=replace(data.train, inputs=Unstamped(data.train.inputs)))
    assert unstamped.train.fingerprint == data.train.fingerprint


@pytest.mark.parametrize("part", ["train", "test"])
def test_result_is_not_reused_after_image_files_were_overwritten(
    folder: Path, tmp_path: Path, refused, monkeypatch, part
):
    monkeypatch.setattr(Reading.__init__, "__defaults__", (False, None, 0))  # no images in memory
    run = {"epochs": 1, "batch_size": 8, "device": "cpu", "precision": "float32", "workers": 0, "validation": 0}
    first = tutelage.train("resnet8", f"folder:{folder}", out=tmp_path / "run", **run)
    second = tutelage.train("resnet8", f"folder:{folder}", out=tmp_path / "run", **run)
    assert second.metrics == first.metrics
    for file in folder.glob(f"{part}/*/*.png"):
        Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(file)
    with refused("different run", "training data"):
        tutelage.train("resnet8", f"folder:{folder}", out=tmp_path / "run", **run)


def test_result_of_an_older_version_is_reused(tmp_path: Path, tiny_data: Data, refused):
    run = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}
    tutelage.train("resnet8", tiny_data, out=tmp_path / "run", **run)
    inputs = tmp_path / "run" / "inputs.json"
    inputs.write_text(inputs.read_text().replace(tiny_data.fingerprint, tiny_data.fingerprint[:16]))
    tutelage.train("resnet8", tiny_data, out=tmp_path / "run", **run)
    other = replace(tiny_data, train=replace(tiny_data.train, labels=flipped(tiny_data.train.labels)))
    with refused("different run", "training data"):
        tutelage.train("resnet8", other, out=tmp_path / "run", **run)


def test_result_is_not_reused_for_other_views_or_test_images(tmp_path, tiny_data, refused):
    run = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}
    tutelage.train("resnet8", tiny_data, out=tmp_path / "run", **run)
    test = replace(tiny_data.test, inputs=flipped(tiny_data.test.inputs))
    for other in (replace(tiny_data, views=CropsAndFlips()), replace(tiny_data, test=test)):
        with refused("different run", "training data"):
            tutelage.train("resnet8", other, out=tmp_path / "run", **run)
