"""Images scaled to a square without distortion or cuts, and where their pixels are in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.data.decode import Encoded, ImageFiles, upright
from tutelage.data.images import Images
from tutelage.data.inputs.images import centred


class Placement(NamedTuple):
    """Where a scaled image lies in a larger one, in pixels."""

    top: int
    left: int
    height: int
    width: int


def placement(size: tuple[int, int], side: int) -> Placement:
    """The place of an image (H, W) in a square: its longer side fills the square, and it is in the middle."""
    scale = side / max(size)
    height, width = (max(1, round(length * scale)) for length in size)
    return Placement((side - height) // 2, (side - width) // 2, height, width)


@dataclass(frozen=True)
class LetterboxedFiles(ImageFiles):
    """Image files that are scaled so that the longer side fits, by an antialiased bicubic filter; the rest is black.

    Unless ``resize`` is set, every image has the size already.
    """

    @property
    def _settings(self) -> str:
        return f"as {self.shape[1:]}{' letterboxed' if self.resize else ''} upright"

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        if not self.resize:
            return super()._pixels(image)
        image = upright(image, self.channels)
        place = placement((image.height, image.width), self.size[0])
        scaled = image.resize((place.width, place.height), Image.Resampling.BICUBIC)
        pixels = np.zeros(self.shape[1:], np.uint8)
        pixels[place.top : place.top + place.height, place.left : place.left + place.width] = np.asarray(
            scaled
        ).reshape(place.height, place.width, self.channels)
        return pixels


def letterboxed(files: Encoded, sizes: Tensor, size: tuple[int, int], channels: int) -> tuple[Images, Tensor]:
    """Files in the middle of squares, for prediction; the rest is as in ``inputs.images.Reader``."""
    if size[0] != size[1]:
        return centred(files, sizes, size, channels)
    views = []
    for height, width in sizes.tolist():
        place = placement((height, width), size[0])
        across, down = width / place.width, height / place.height
        views.append([-place.left * across, -place.top * down, size[1] * across, size[0] * down])
    images = LetterboxedFiles(files, size, channels, resize=True)
    return images, torch.tensor(views, dtype=torch.float64)
