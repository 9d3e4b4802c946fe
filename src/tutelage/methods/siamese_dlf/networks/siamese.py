"""A small Siamese network for crops of 63 and 127 pixels."""

from __future__ import annotations

import re

from torch import nn

from tutelage.methods.siamese_dlf.siamese import Siamese, block, check_width
from tutelage.models.family import Family


def build(width: int, in_channels: int = 3) -> Siamese:
    """Four convolutions of ``width`` channels without padding, stride 4: 63 and 127 pixels to 9 x 9 and 25 x 25.

    The response has 17 x 17 positions.

    Raises:
        TutelageError: the width is 0.
    """
    check_width("siamese", width)
    return Siamese(
        [
            block(in_channels, width, 5, stride=2, pool=2),
            block(width, width, 3),
            block(width, width, 3),
            nn.Conv2d(width, width, 3),
        ],
        search=(63, 127),
    )


FAMILY = Family(
    re.compile(r"siamese(?P<width>[0-9]+)"),
    build,
    ("siamese8", "siamese32"),
    "Siamese tracker for crops of 63 and 127 pixels: siamese<channels>",
    "after Bertinetto et al. 2016, arXiv 1606.09549",
)
