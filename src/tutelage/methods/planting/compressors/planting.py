"""Growth of a narrower network as a way to compress a network."""

from __future__ import annotations

from typing import Any


def settings(resource: str, share: float) -> dict[str, dict[str, Any]]:
    """From half of the target with new weights, in four rounds that try four layers each; then all weights are trained.

    ``fine_tune`` is not in the paper.
    """
    if resource not in ("flops", "parameters"):
        return {}
    growth = {"channels": None, "rounds": 4, "patience": 4, "tries": 4, "planting_epochs": None, "fine_tune": None}
    return {"": {"resource": resource, "target": share, "narrow": share / 2, **growth}}
