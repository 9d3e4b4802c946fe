"""Pruning of residual blocks as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """So many blocks remain that their share is about the target; the blocks differ in cost."""
    if resource not in ("flops", "parameters"):
        return {}
    return {"": {"dense": "teacher", "keep": share, "tolerance": 1.0, "alpha": 0.9}}
