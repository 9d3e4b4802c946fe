"""Labels with a column for each name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tutelage.errors import TutelageError


def check_columns(labels: Tensor, what: str, names: Sequence[str], noun: str) -> None:
    """Refuse labels (N, C) for another number of names."""
    if labels.shape[1] != len(names):
        raise TutelageError(f"the {what} has {labels.shape[1]} columns for {len(names)} {noun}")
