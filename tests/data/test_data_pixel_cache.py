"""The cache of decoded images: exact, shared, and robust against damage, races and full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.image_files import random_pixels, write_image
from tutelage.config import Config
from tutelage.data import Batches, Data
from tutelage.data.configured import load_data
from tutelage.data.pixel_cache import PixelCache
from tutelage.errors import TutelageWarning

SIDE = 16
PIXELS = random_pixels(0, (9, 7, 3))


def unexpected() -> np.ndarray:
    raise AssertionError("decoded although it is cached")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for number in range(6):
            file = tmp_path / "photos" / split / "a" / f"{number}.jpg"
            write_image(file, random_pixels(number, (40, 50 + number, 3)))
    return tmp_path / "photos"


def configured(folder: Path, cache: Path | None, **fields: Any) -> Data:
    fields = {"augment": "standard", "validation": 0.0, "image_size": SIDE} | fields
    return load_data(Config(data=f"folder:{folder}", cache=None if cache is None else str(cache), **fields))


def inputs(data: Data, workers: int = 0) -> torch.Tensor:
    batches = Batches(data.train, batch_size=3, views=data.views, workers=workers)
    return torch.stack([batch.inputs for epoch in range(2) for batch in batches.epoch(epoch)])


@pytest.mark.parametrize("augment", ["standard", "crop"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_a_cache_has_the_same_pixels(photos, tmp_path, augment, workers):
    expected = inputs(configured(photos, None, augment=augment))
    for _ in range(2):
        assert torch.equal(inputs(configured(photos, tmp_path / "cache", augment=augment), workers), expected)
    assert len(files(tmp_path / "cache")) in (6, 12)  # crop decodes the test split into memory, too


def test_entries_are_read_by_another_process_and_not_decoded_again(photos, tmp_path, monkeypatch):
    expected = inputs(configured(photos, tmp_path / "cache"))
    monkeypatch.setattr("tutelage.data.whole_images.WholeImages._decoded", lambda *_: unexpected())
    assert torch.equal(inputs(configured(photos, tmp_path / "cache")), expected)


def test_a_changed_file_and_other_settings_are_other_entries(photos, tmp_path):
    inputs(configured(photos, tmp_path / "cache"))
    count = len(files(tmp_path / "cache"))
    inputs(configured(photos, tmp_path / "cache", image_size=8))
    assert len(files(tmp_path / "cache")) == 2 * count
    changed = photos / "train" / "a" / "0.jpg"
    write_image(changed, random_pixels(99, (40, 50, 3)))
    data = configured(photos, tmp_path / "cache")
    assert torch.equal(inputs(data), inputs(configured(photos, None)))
    assert len(files(tmp_path / "cache")) == 2 * count + 1


def test_equal_names_sizes_and_times_in_two_folders_are_two_entries(tmp_path):
    for split, seed in (("train", 1), ("test", 2)):
        file = write_image(tmp_path / "photos" / split / "a" / "0.bmp", random_pixels(seed, (40, 40, 3)))
        os.utime(file, ns=(1, 1))
    data = configured(tmp_path / "photos", tmp_path / "cache")
    first = torch.tensor([0])
    assert not torch.equal(data.train.inputs[first], data.test.inputs[first])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: content[:-1] + bytes([content[-1] ^ 128]),
        lambda content: bytes(len(content)),
        lambda content: content[:20] + b"\xff\xff\xff" + content[23:],
    ],
    ids=["one byte short", "no header", "empty", "too long", "a bit", "the last bit", "zeros", "shape"],
)
def test_damaged_entries_are_decoded_anew_and_written_again(tmp_path, damage):
    cache = PixelCache(tmp_path)
    assert np.array_equal(cache.pixels("a", lambda: PIXELS), PIXELS)
    (entry,) = files(tmp_path)
    content = entry.read_bytes()
    entry.write_bytes(damage(content))
    assert np.array_equal(PixelCache(tmp_path).pixels("a", lambda: PIXELS), PIXELS)
    assert entry.read_bytes() == content
    assert np.array_equal(cache.pixels("a", unexpected), PIXELS)


def test_an_entry_of_another_key_is_not_used(tmp_path):
    cache = PixelCache(tmp_path)
    cache.pixels("a", lambda: PIXELS)
    (entry,) = files(tmp_path)
    cache.pixels("b", lambda: PIXELS + 1)
    (other,) = set(files(tmp_path)) - {entry}
    other.write_bytes(entry.read_bytes())
    assert np.array_equal(cache.pixels("b", lambda: PIXELS + 1), PIXELS + 1)


def fill(folder: Path, results: Any) -> None:
    cache = PixelCache(folder)
    results.put([cache.pixels(str(n), lambda n=n: random_pixels(n, (50, 60, 3))).tobytes() for n in range(40)])


def test_processes_fill_a_cache_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=fill, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    expected = [random_pixels(n, (50, 60, 3)).tobytes() for n in range(40)]
    assert answers == [expected] * 3
    assert len(files(tmp_path)) == 40  # no temporary files


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_one_warning_and_the_run_goes_on(photos, tmp_path, monkeypatch, code):
    expected = inputs(configured(photos, None))
    calls = []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tutelage.data.pixel_cache.publish", full)
    with pytest.warns(TutelageWarning) as record:
        assert torch.equal(inputs(configured(photos, tmp_path / "cache")), expected)
    assert len(record) == 1
    assert os.strerror(code) in str(record[0].message)
    assert "--cache" in str(record[0].message)
    assert len(calls) == 1


def test_worker_processes_share_the_one_warning(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tutelage.data.pixel_cache.publish", lambda *_, **__: os.stat("/no such file"))
    data = configured(photos, tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in the workers, too
        inputs(data, workers=2)
    assert bool(data.train.inputs.cache._failed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs(data)


def test_a_read_only_cache_is_read(photos, tmp_path, monkeypatch):
    expected = inputs(configured(photos, tmp_path / "cache"))
    monkeypatch.setattr("tutelage.data.pixel_cache.publish", lambda *_, **__: unexpected())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(inputs(configured(photos, tmp_path / "cache")), expected)


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    PixelCache(tmp_path).pixels("a", lambda: PIXELS)
    (entry,) = files(tmp_path)
    abandoned = entry.with_name(f".{entry.name}.{'0' * 12}.tmp")
    abandoned.write_bytes(b"half")
    PixelCache(tmp_path)
    assert files(tmp_path) == [entry]


def test_a_file_in_place_of_the_folder_and_data_without_files_are_refused(tmp_path, refused):
    (tmp_path / "file").write_text("")
    with refused("file", "name a folder"):
        PixelCache(tmp_path / "file")
    with refused("cache", "digits", "folder:"):
        load_data(Config(data="digits", cache=str(tmp_path / "cache")))
