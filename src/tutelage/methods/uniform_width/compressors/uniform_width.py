"""Uniform width as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """From the teacher's largest filters, and from new weights."""
    if resource not in ("flops", "parameters"):
        return {}
    target = {"resource": resource, "target": share}
    return {"": {**target, "start": "teacher"}, "scratch": {**target, "start": "initial"}}
