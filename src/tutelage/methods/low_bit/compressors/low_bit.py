"""Weights of few bits as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """The number of bits closest to the share of 32, 2 to 8, for all layers but the first and the last."""
    return {"": {"bits": min(max(round(32 * share), 2), 8), "start": "teacher"}} if resource == "bits" else {}
