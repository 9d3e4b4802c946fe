"""Pruning of redundant units as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """It stops where the accuracy falls, whatever the share."""
    return {"": {"dense": "teacher"}} if resource in ("flops", "parameters") else {}
