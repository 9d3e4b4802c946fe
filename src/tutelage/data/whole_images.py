"""Whole images of any size, of which random boxes are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.data.decode import Encoded, ImageFiles, cached_pixels, open_image, upright
from tutelage.data.pixel_cache import PixelCache
from tutelage.data.views.boxes import CENTRE, centre_boxes, cut

REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True, eq=False)
class WholeImages:
    """Images that are decoded at each access, whole: training reads random boxes of them, evaluation the centre.

    An image is decoded at 1/8, 1/4 or 1/2 of its size if its shorter side then still has ``size / CENTRE`` pixels or
    more (256 for 224): JPEG files by the decoder, which saves most of its work, others by averaging. A box is scaled
    from there to the output in one step. Colours, bits and orientation are those of ``ImageFiles``.

    Attributes:
        encoded: the images.
        size: (H, W) of what is read.
        channels: 1 for grey, 3 for RGB.
        full_sizes: (N, 2) int64, the upright size (H, W) of each image.
        cache: where decoded pixels are kept, if anywhere.
    """

    encoded: Encoded
    size: tuple[int, int]
    channels: int
    full_sizes: Tensor
    cache: PixelCache | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C) of what is read."""
        return (len(self.encoded), *self.size, self.channels)

    @cached_property
    def factors(self) -> Tensor:
        """(N,) int64: by how much the decoded images are smaller than the files, 1, 2, 4 or 8."""
        least = math.ceil(max(self.size) / CENTRE)
        factors = torch.ones(len(self.full_sizes), dtype=torch.int64)
        for factor in reversed(REDUCTIONS):
            factors[self.full_sizes.amin(1) // factor >= least] = factor
        return factors

    @cached_property
    def sizes(self) -> Tensor:
        """(N, 2) int64: the size (H, W) of each decoded image."""
        return (self.full_sizes + self.factors[:, None] - 1) // self.factors[:, None]

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The centres of the images at these indices, for evaluation: (B, H, W, C) uint8."""
        return self.crops(indices, centre_boxes(self.sizes[indices]))

    def crops(self, indices: Tensor, boxes: Tensor) -> Tensor:
        """A box of each image at these indices, scaled to one size: (B,), (B, 5) int64 to (B, H, W, C) uint8."""
        batch = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        for row, index, box in zip(batch, indices.tolist(), boxes.tolist(), strict=True):
            row.copy_(self._crop(index, box))
        return batch

    def _crop(self, index: int, box: list[int]) -> Tensor:
        """A box of one image, scaled: (H, W, C) uint8. Without a cache only the pixels of the box become an array."""
        if self.cache is not None:
            return cut(torch.from_numpy(self._whole(index)), box, self.size)
        top, left, height, width, mirrored = box
        with self._opened(index) as image:
            part = image.crop((left, top, left + width, top + height))
        return cut(torch.from_numpy(self._array(part)), [0, 0, height, width, mirrored], self.size)

    def fingerprint(self, index: int) -> str | None:
        """The fingerprint of the encoded image with the decoding settings; ``None`` if it has no fingerprint.

        Raises:
            TutelageError: the image's file does not exist any more.
        """
        source = ImageFiles(self.encoded, self.size, self.channels).fingerprint(index)
        return source and f"{source} whole, {self._settings(index)}"

    def _settings(self, index: int) -> str:
        height, width = self.sizes[index].tolist()
        return f"at 1/{int(self.factors[index])} as {(height, width, self.channels)} upright"

    def _whole(self, index: int) -> NDArray[np.uint8]:
        decode = partial(self._decoded, index)
        return cached_pixels(self.cache, self.encoded, index, self._settings(index), decode)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        with self._opened(index) as image:
            return self._array(image)

    def _array(self, image: Image.Image) -> NDArray[np.uint8]:
        """The pixels of an image, (H, W, C)."""
        return np.array(image).reshape(image.height, image.width, self.channels)

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        """One decoded image, upright, of the size in ``sizes``; reading errors become one-line messages."""
        height, width = self.sizes[index].tolist()
        with open_image(self.encoded, index) as image:
            full = image.size
            factor = int(self.factors[index])
            if factor > 1:
                image.draft(None, (full[0] // factor, full[1] // factor))  # changes JPEG files only
            turned = upright(image, self.channels)
            if (remaining := round(factor * image.width / full[0])) > 1:
                turned = turned.reduce(remaining)
            if (turned.height, turned.width) != (height, width):
                raise ValueError(
                    f"{turned.width}x{turned.height} pixels at 1/{factor}, but the file had another size before"
                )
            yield turned
