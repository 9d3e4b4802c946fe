"""SiamFC: the Siamese network with AlexNet's convolutions (Bertinetto et al. 2016, arXiv 1606.09549)."""

from __future__ import annotations

import re

from torch import nn

from tutelage.methods.siamese_dlf.siamese import Siamese, block, check_width
from tutelage.models.family import Family


def build(width: int, in_channels: int = 3) -> Siamese:
    """AlexNet's five convolutions without padding, stride 8: 127 and 255 pixels to 6 x 6 and 22 x 22.

    The response has 17 x 17 positions. A width of 96 is AlexNet's: 96, 256, 384, 384 and 256 channels, in two groups in
    the second, fourth and fifth convolution.

    Raises:
        TutelageError: the width is no multiple of 6, so that the channels of all layers are even.
    """
    check_width("siamfc", width, 6)
    narrow, wide = width * 8 // 3, width * 4
    return Siamese(
        [
            block(in_channels, width, 11, stride=2, pool=3),
            block(width, narrow, 5, groups=2, pool=3),
            block(narrow, wide, 3),
            block(wide, wide, 3, groups=2),
            nn.Conv2d(wide, narrow, 3, groups=2),
        ],
        search=(175, 255),
    )


FAMILY = Family(
    re.compile(r"siamfc(?P<width>[0-9]+)"),
    build,
    ("siamfc96", "siamfc24"),
    "Siamese tracker with AlexNet's convolutions, for crops of 127 and 255 pixels: siamfc<channels of the first>",
    "Bertinetto et al. 2016, arXiv 1606.09549",
)
