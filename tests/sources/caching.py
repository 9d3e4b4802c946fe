"""Functions that fill a cache and read it again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch

from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches
from tutelage.models.derived_role import DerivedRole
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.sources.cache import TeacherCache
from tutelage.terms.attention import pooled_attention
from tutelage.terms.flow import flow_matrix

Net = Callable[..., Tapped]
ROLES = ("logits", "embedding")
ATTENTION = DerivedRole(pooled_attention, "stage1", size=(4, 4), p=2.0)
FLOW = DerivedRole(flow_matrix, "stage1", "stage2")
OUTPUT_SIZES = {"logits": 4, "embedding": 8, ATTENTION: 16, FLOW: 32, "stage2": 128}
"""Roles, and the size of the tiny network's output for each."""


def epochs(data: Data, count: int, seed: int = 0) -> list[Batch]:
    batches = Batches(data.train, batch_size=16, views=data.views, seed=seed)
    return [batch for epoch in range(count) for batch in batches.epoch(epoch)]


def max_difference(a: Outputs, b: Outputs, roles: Collection[str] = ROLES) -> float:
    return max(float((a[role] - b[role]).abs().max()) for role in roles)


def fill_cache(data: Data, teacher: Tapped, folder: Path, role: str = "logits") -> Path:
    """Cache the outputs of one epoch; return the file."""
    cached_source = Frozen(teacher, cache=TeacherCache(folder, data))
    for batch in epochs(data, 1):
        cached_source(batch, (role,), {})
    (file,) = folder.iterdir()
    return file


def count_passes(data: Data, teacher: Tapped, folder: Path, role: str = "logits") -> tuple[int, int]:
    """Numbers of cache hits and misses in one epoch, all of whose outputs are checked."""
    store = TeacherCache(folder, data)
    for batch in epochs(data, 1):
        outputs = Frozen(teacher, cache=store)(batch, (role,), {})[role]
        assert torch.equal(outputs, Frozen(teacher)(batch, (role,), {})[role])
    return store.hits, store.misses
