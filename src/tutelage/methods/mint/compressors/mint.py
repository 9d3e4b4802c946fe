"""Weights that are fixed at zero as a way to compress a network."""

from __future__ import annotations

from typing import Any

MASK_BIT = 1 / 32  # of a float weight: the packed file has a bit for each pair of an output and an input, or less


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """Groups with little mutual information are cut, and groups of small weights.

    The number of operations does not fall: zeros are multiplied like other weights.
    """
    target = {"parameters": share, "bits": share - MASK_BIT}.get(resource, 0)
    if target <= 0:
        return {}
    common = {"start": "teacher", "target": target, "cap": 0.95, "groups": 8, "per_class": 40, "alpha": 0.9}
    return {"": common, "magnitude": {**common, "criterion": "magnitude"}}
