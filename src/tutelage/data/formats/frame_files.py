"""Frames of videos in image files, filled up to one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.data.assemble import IN_MEMORY, decoded
from tutelage.data.decode import open_image, read_headers, upright
from tutelage.data.formats.folder import Files
from tutelage.errors import TutelageError


@dataclass(frozen=True, eq=False)
class FrameFiles:
    """Frames that are decoded at each access, filled up to one size with their mean colour: the ``Images`` of a split.

    Attributes:
        encoded: the images.
        size: (H, W) of what is read.
        channels: 1 for grey, 3 for RGB.
    """

    encoded: Files
    size: tuple[int, int]
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.encoded), *self.size, self.channels)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The frames at these indices, (B, H, W, C) uint8."""
        batch = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for row, index in zip(batch, indices.tolist(), strict=True):
            with open_image(self.encoded, index) as image:
                turned = upright(image, self.channels)
                pixels = np.asarray(turned).reshape(turned.height, turned.width, self.channels)
                if any(own > most for own, most in zip(pixels.shape, self.size, strict=False)):
                    raise ValueError(f"{turned.width}x{turned.height} pixels, but it was smaller before")
            row[:] = pixels.mean((0, 1)).round()
            row[: pixels.shape[0], : pixels.shape[1]] = pixels
        return torch.from_numpy(batch)

    def fingerprint(self, index: int) -> str:
        """The file's name, size and time of change, with the size of what is read."""
        return f"{self.encoded.fingerprint(index)} filled up to {self.shape[1:]}"


def read_frames(encoded: Mapping[str, Files]) -> dict[str, Tensor | FrameFiles]:
    """The frames of each split, of one size: in memory if all fit, otherwise only their headers are read."""
    try:
        headers = [header for files in encoded.values() for header in read_headers(files)]
    except TutelageError as error:
        raise TutelageError(f"{str(error).rpartition(';')[0]}; replace it") from error
    size = max(header.size[0] for header in headers), max(header.size[1] for header in headers)
    channels = 1 if all(header.grey for header in headers) else 3
    images = {split: FrameFiles(files, size, channels) for split, files in encoded.items()}
    if sum(int(np.prod(frames.shape)) for frames in images.values()) > IN_MEMORY:
        return {**images}
    return {split: decoded(frames) for split, frames in images.items()}
