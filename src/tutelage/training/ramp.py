"""The sigmoid-shaped ramp-up of a loss weight: Laine, Aila 2017, arXiv 1610.02242."""

from __future__ import annotations

import math


def sigmoid_ramp_up(progress: float, ramp: float) -> float:
    """exp(-5 (1 - t / ramp)^2) at progress t in [0, 1), and 1 from ``ramp`` on."""
    return math.exp(-5 * (1 - progress / ramp) ** 2) if progress < ramp else 1.0
