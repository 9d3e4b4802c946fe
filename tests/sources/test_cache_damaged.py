"""Damaged or mismatched cache files are repaired or refused."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.sources.caching import (
    ATTENTION,
    FLOW,
    OUTPUT_SIZES,
    ROLES,
    Net,
    count_passes,
    epochs,
    fill_cache,
    max_difference,
)
from tutelage.data import CropsAndFlips, Data
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.sources.cache import TeacherCache


@pytest.mark.parametrize("role", ["logits", ATTENTION, FLOW, "stage2"])
def test_damaged_byte_of_an_entry_is_detected_and_repaired(
    role: str, tiny_data: Data, tiny_model: Net, tmp_path: Path
) -> None:
    teacher = tiny_model(1)
    file = fill_cache(tiny_data, teacher, tmp_path, role)
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    row = 8 + 9 * (4 + 4 * OUTPUT_SIZES[role])
    for _ in range(40 if role == "logits" else 10):
        damaged_content = bytearray(content)
        sample, byte = int(generator.integers(48)), int(generator.integers(8, row))
        damaged_content[4096 + sample * row + byte] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged_content)
        hits, misses = count_passes(tiny_data, teacher, tmp_path, role)
        # The first batch is always computed, and a single missing sample is computed together with a second one.
        assert (hits, misses) in ((32, 16), (30, 18))
        assert count_passes(tiny_data, teacher, tmp_path, role) == (32, 16)  # the entry has been repaired


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda content: b"", ("is no file of cached teacher outputs", "remove it")),
    "another kind of file": (lambda content: b"PK\x03\x04" + content[4:], ("is no file of cached teacher outputs",)),
    "a truncated header": (lambda content: content[:40], ("is no file of cached teacher outputs",)),
    "another teacher": (
        lambda content: re.sub(rb'"teacher": "....', b'"teacher": "zzzz', content, count=1),
        ("another teacher",),
    ),
    "another transform": (lambda content: content.replace(b'"pad": 1', b'"pad": 2', 1), ("another views",)),
    "another shape": (lambda content: content.replace(b'"shape": [4]', b'"shape": [5]', 1), ("another shape",)),
}


@pytest.mark.parametrize(("damage", "fragments"), DAMAGE.values(), ids=list(DAMAGE))
def test_invalid_or_mismatched_file_is_refused(
    damage: Any, fragments: tuple[str, ...], tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    file = fill_cache(tiny_data, teacher, tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with refused(file, *fragments):
        count_passes(tiny_data, teacher, tmp_path)


def test_truncated_file_is_filled_again(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    file = fill_cache(tiny_data, teacher, tmp_path)
    size = file.stat().st_size
    os.truncate(file, 4096 + 500)
    hits, misses = count_passes(tiny_data, teacher, tmp_path)
    assert misses > 40
    assert hits + misses == 48
    assert file.stat().st_size == size


def test_outputs_of_other_images_weights_or_views_are_not_reused(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    fill_cache(tiny_data, teacher, tmp_path)
    images = tiny_data.train.inputs.clone()  # type: ignore[union-attr]
    images[7, 3, 3] += 1
    other = replace(tiny_data, train=replace(tiny_data.train, inputs=images))
    with refused("outputs for other images", "1 of 48", "index 7", "another folder"):
        count_passes(other, teacher, tmp_path)
    with refused("outputs of another views", "another folder"):
        count_passes(replace(tiny_data, views=CropsAndFlips(pad=1, flip=True)), teacher, tmp_path)
    with torch.no_grad():
        teacher.module.fc.bias += 1  # type: ignore[operator, union-attr]
    assert count_passes(tiny_data, teacher, tmp_path)[1] == 48  # other weights have another file
    normalised = Tapped(teacher.module, [0.1], [0.9])
    with refused("another normalisation"):
        count_passes(tiny_data, normalised, tmp_path)


def test_two_concurrent_writers(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    stores = [TeacherCache(tmp_path, tiny_data) for _ in range(2)]
    for batches in zip(epochs(tiny_data, 4, seed=1), epochs(tiny_data, 4, seed=2), strict=True):
        for store, batch in zip(stores, batches, strict=True):
            outputs = Frozen(teacher, cache=store)(batch, ROLES, {})
            assert max_difference(outputs, Frozen(teacher)(batch, ROLES, {})) == 0
    assert all(store.hits > 16 for store in stores)


def test_full_disk_is_reported_in_one_line(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with refused("cannot cache the teacher's outputs", "No space left", "MiB", "--views"):
        fill_cache(tiny_data, tiny_model(1), tmp_path)
