"""The images of a split, in memory or in files, and hashes that identify images."""

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

HASH_DTYPE = np.dtype("<u8")


@runtime_checkable
class Images(Protocol):
    """The images of a split that are read from files when needed."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        ...

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at these indices, (B, H, W, C) uint8."""
        ...

    def fingerprint(self, position: int) -> str | None:
        """Text that identifies this image without reading it; ``None`` if there is none."""
        ...


@runtime_checkable
class CroppableImages(Images, Protocol):
    """Images of any size, of which boxes are read; without a box, their centres."""

    @property
    def sizes(self) -> Tensor:
        """(N, 2) int64: the size (H, W) of each image."""
        ...

    def crops(self, indices: Tensor, boxes: Tensor) -> Tensor:
        """A box of each image, scaled to one size: (B,), (B, 5) int64 to (B, H, W, C) uint8."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSubset:
    """A subset of the images in files."""

    images: Images
    indices: Tensor

    @classmethod
    def of(cls, images: Images, indices: Tensor) -> ImageSubset:
        """The images at these indices, of which boxes can be read if they can of all."""
        return CroppableSubset(images, indices) if isinstance(images, CroppableImages) else cls(images, indices)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.indices), *self.images.shape[1:])

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.images[self.indices[index]]

    def fingerprint(self, position: int) -> str | None:
        """The fingerprint in the full set."""
        return self.images.fingerprint(int(self.indices[position]))


@dataclass(frozen=True, eq=False)
class CroppableSubset(ImageSubset):
    """A subset of images of any size."""

    images: CroppableImages

    @property
    def sizes(self) -> Tensor:
        """(N, 2) int64: the size (H, W) of each image."""
        return self.images.sizes[self.indices]

    def crops(self, indices: Tensor, boxes: Tensor) -> Tensor:
        """A box of each image, scaled to one size: (B,), (B, 5) int64 to (B, H, W, C) uint8."""
        return self.images.crops(self.indices[indices], boxes)


def image_hashes(images: Tensor | Images) -> NDArray[Any] | None:
    """A hash of each image: (N,) uint64, never 0.

    Computed from the pixels of images in memory and from the fingerprints of others; ``None`` if those have none.
    """
    if isinstance(images, Tensor):
        return _pixel_hashes(images)
    hashes = np.empty(images.shape[0], HASH_DTYPE)
    for position in range(len(hashes)):
        identity = images.fingerprint(position)
        if identity is None:
            return None
        hashes[position] = int.from_bytes(hashlib.blake2b(os.fsencode(identity), digest_size=8).digest(), "little")
    return hashes | HASH_DTYPE.type(1)


def _pixel_hashes(images: Tensor) -> NDArray[Any]:
    """A hash of the values of each sample: (N, ...) to (N,) uint64, never 0."""
    flat = images.cpu().reshape(len(images), -1).contiguous().view(torch.uint8)
    generator = torch.Generator().manual_seed(1)
    factors = torch.randint(2**62, (flat.shape[1],), generator=generator) * 2 + 1
    hashes = torch.cat([(chunk.to(torch.int64) * factors).sum(1) for chunk in torch.split(flat, 4096)])
    return hashes.numpy().view(HASH_DTYPE) | HASH_DTYPE.type(1)


def fingerprint_bytes(images: Tensor | Images) -> Iterator[memoryview]:
    """The bytes for a split's fingerprint: pixels in memory, else hashes of fingerprints, else pixels as read."""
    if isinstance(images, Tensor):
        yield images.cpu().contiguous().numpy().data
    elif (hashes := image_hashes(images)) is not None:
        yield hashes.data
    else:
        for indices in torch.split(torch.arange(images.shape[0]), 256):
            yield images[indices].cpu().contiguous().numpy().data
