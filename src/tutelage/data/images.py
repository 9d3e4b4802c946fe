"""The images of a split, in memory or in files, and the numbers that tell one image from another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CODE = np.dtype("<u8")


@runtime_checkable
class Images(Protocol):
    """Where a split's pixels are: on the device, or in files read as they are needed."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        ...

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at these places, (B, H, W, C) uint8."""
        ...

    def fingerprint(self, place: int) -> str | None:
        """What tells this image from another without reading it; ``None`` where nothing does."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSubset:
    """Some of the images of a larger set of files."""

    images: Images
    places: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.places), *self.images.shape[1:])

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.images[self.places[index]]

    def fingerprint(self, place: int) -> str | None:
        """The stamp that the image has in the larger set."""
        return self.images.fingerprint(int(self.places[place]))


def image_hashes(images: Tensor | Images) -> NDArray[Any] | None:
    """A number for each image, another one for another image: (N,) uint64, never 0.

    It is made of the pixels of images in memory, and of the stamps of others; ``None`` where those have none.
    """
    if isinstance(images, Tensor):
        return _pixel_codes(images)
    codes = np.empty(images.shape[0], CODE)
    for place in range(len(codes)):
        stamp = images.fingerprint(place)
        if stamp is None:
            return None
        codes[place] = int.from_bytes(hashlib.blake2b(os.fsencode(stamp), digest_size=8).digest(), "little")
    return codes | CODE.type(1)


def _pixel_codes(images: Tensor) -> NDArray[Any]:
    """A number for each sample, another one for other values: (N, ...) to (N,) uint64, never 0."""
    flat = images.cpu().reshape(len(images), -1).contiguous().view(torch.uint8)
    generator = torch.Generator().manual_seed(1)
    factors = torch.randint(2**62, (flat.shape[1],), generator=generator) * 2 + 1
    codes = torch.cat([(part.to(torch.int64) * factors).sum(1) for part in torch.split(flat, 4096)])
    return codes.numpy().view(CODE) | CODE.type(1)


def fingerprint_bytes(images: Tensor | Images) -> Iterator[memoryview]:
    """What a fingerprint of a split's images is made of: pixels in memory, else stamps, else the pixels as read."""
    if isinstance(images, Tensor):
        yield images.cpu().contiguous().numpy().data
    elif (codes := image_hashes(images)) is not None:
        yield codes.data
    else:
        for places in torch.split(torch.arange(images.shape[0]), 256):
            yield images[places].cpu().contiguous().numpy().data
