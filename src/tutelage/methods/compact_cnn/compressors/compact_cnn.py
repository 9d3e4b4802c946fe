"""Learned widths as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """With the remaining weights, and with new weights of the same widths."""
    if resource not in ("flops", "parameters"):
        return {}
    target = {"resource": resource, "target": share, "start": "teacher", "strength": 10.0}
    return {"": {**target, "finish": "finetune"}, "scratch": {**target, "finish": "scratch"}}
