"""Weights of few bits as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """The number of bits closest to the share of 32, 2 to 8, for all layers but the first and the last.

    The rate of stage 2 is a tenth of the default, which destroys deep networks (docs/results/compress_cifar10.md).
    """
    if resource != "bits":
        return {}
    return {"": {"bits": min(max(round(32 * share), 2), 8), "start": "teacher", "joint_rate": 1e-4}}
