"""Cached teacher outputs equal computed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sources.caching import ATTENTION, OUTPUT_SIZES, ROLES, Net, epochs, max_difference
from tutelage.data import Data
from tutelage.sources import Frozen
from tutelage.sources.cache import TeacherCache


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_cached_outputs_equal_computed_ones(
    precision: Any, tolerance: float, tiny_data: Data, tiny_model: Net, tmp_path: Path
) -> None:
    teacher = tiny_model(1)
    computed, batches = Frozen(teacher), epochs(tiny_data, 6)
    for is_filled in (False, True):
        store = TeacherCache(tmp_path, tiny_data, precision)
        cached_source = Frozen(teacher, cache=store)
        for batch in batches:
            outputs, expected = cached_source(batch, OUTPUT_SIZES, {}), computed(batch, OUTPUT_SIZES, {})
            assert outputs["logits"].dtype == torch.float32
            scale = max(float(expected[role].abs().max()) for role in OUTPUT_SIZES)
            assert max_difference(outputs, expected, OUTPUT_SIZES) <= tolerance * scale
        assert store.hits + store.misses == len(batches) * 16
        assert (store.misses == 16) if is_filled else (store.misses > 16)  # shapes are read from the first batch
    sizes = {file.name.split("-", 2)[2]: file.stat().st_size for file in tmp_path.iterdir()}
    bytes_per_number = {"float32": 4, "float16": 2, "bfloat16": 2}[precision]
    names = ("logits", "embedding", "pooled_attention-stage1-size-4-4-p-2.0", "flow_matrix-stage1-stage2", "stage2")
    assert sizes == {
        f"{name}-{precision}.outputs": 4096 + 48 * (8 + 9 * (4 + size * bytes_per_number))
        for name, size in zip(names, OUTPUT_SIZES.values(), strict=True)
    }


def test_computed_outputs_are_rounded_like_cached_ones(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data, "float16"))
    first = cached_source(batch, ROLES, {})
    assert max_difference(first, cached_source(batch, ROLES, {})) == 0


def test_every_teacher_has_its_own_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teachers = (tiny_model(1), tiny_model(2))
    cached_source = Frozen(*teachers, cache=TeacherCache(tmp_path, tiny_data))
    for batch in epochs(tiny_data, 2):
        assert torch.equal(
            cached_source(batch, ("logits",), {})["logits"], Frozen(*teachers)(batch, ("logits",), {})["logits"]
        )
    assert len(list(tmp_path.iterdir())) == 2


def test_subsets_of_a_data_set_share_a_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    for rows in (torch.arange(0, 32), torch.arange(16, 48)):
        subset = replace(tiny_data, train=tiny_data.train.subset(rows), validation=None)
        noisy_data = replace(subset, train=replace(subset.train, labels=(subset.train.labels + 1) % 4))
        cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, noisy_data))
        for batch in epochs(noisy_data, 2):
            expected = Frozen(teacher)(batch, ROLES, {})
            assert max_difference(cached_source(batch, ROLES, {}), expected) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_inputs_without_an_augmentation_key_are_not_cached(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data))
    cached_source(batch, ROLES, {})
    flipped = replace(batch, inputs=batch.inputs.flip(2), key=None)
    assert max_difference(cached_source(flipped, ROLES, {}), Frozen(teacher)(flipped, ROLES, {})) == 0
    assert cached_source.cache is not None
    assert (cached_source.cache.hits, cached_source.cache.misses) == (0, 16)


def test_every_precision_has_its_own_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    cached_source, computed = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data)), Frozen(teacher)
    for _ in range(2):
        assert max_difference(cached_source(batch, ROLES, {}), computed(batch, ROLES, {})) == 0  # as in a dry run
        with torch.autocast("cpu", torch.bfloat16):
            assert max_difference(cached_source(batch, ROLES, {}), computed(batch, ROLES, {})) == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert cached_source.cache is not None
    assert cached_source.cache.hits == 32


@pytest.mark.parametrize("roles", [("logits", "stage1"), (ATTENTION, "stage1"), ("stage2",)], ids=str)
def test_a_feature_map_with_too_large_a_file_is_not_cached(
    roles: tuple[str, ...], tiny_data: Data, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.sources.cache.LARGEST_MAP_FILE", 48 * 9 * 128 * 4 - 1)  # one byte less than stage2
    teacher = tiny_model(1)
    cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data))
    for batch in epochs(tiny_data, 2):
        outputs, expected = cached_source(batch, roles, {}), Frozen(teacher)(batch, roles, {})
        assert all(torch.equal(outputs[role], expected[role]) for role in roles)
    assert not list(tmp_path.iterdir())
