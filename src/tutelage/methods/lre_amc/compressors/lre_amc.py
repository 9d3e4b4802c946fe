"""Removal of redundant units as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """Each layer in turn loses a fifth of its units, until the target is met or accuracy falls by 5 points."""
    if resource not in ("flops", "parameters"):
        return {}
    return {"": {"dense": "teacher", "resource": resource, "target": share, "keep": 0.8}}
