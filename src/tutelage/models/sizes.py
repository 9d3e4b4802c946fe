"""Sizes of the feature maps of generators and critics."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.errors import TutelageError

SMALLEST = 4  # side in pixels of a generator's first maps and a critic's last maps


def halved_sizes(height: int, width: int) -> Sequence[tuple[int, int]]:
    """The sizes of an image's feature maps: halved while both sides are even and larger than ``SMALLEST``."""
    sizes = [(height, width)]
    while min(height, width) > SMALLEST and height % 2 == width % 2 == 0:
        height, width = height // 2, width // 2
        sizes.append((height, width))
    return sizes


def scaled_channels(network: str, channels: float) -> int:
    """The rounded number of channels.

    Raises:
        TutelageError: it is 0.
    """
    if round(channels) < 1:
        raise TutelageError(f"the width of this {network} leaves {channels:g} channels: take a larger one")
    return round(channels)
