"""Decoding of images (PNG, JPEG, WebP, BMP) to pixels of one size."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from tutelage.data.pixel_cache import PixelCache
from tutelage.errors import TutelageError, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""The only formats that are decoded, whatever the file name: no other decoder of Pillow reads a user's file."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns an image upright, by its EXIF orientation."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class Encoded(Protocol):
    """Images that are not decoded yet. Must be picklable for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Path | bytes:
        """A file, or the content of one."""
        ...

    def name(self, index: int) -> str:
        """The name of this image in error messages."""
        ...

    def fingerprint(self, index: int) -> str | None:
        """Text that identifies this image without opening it; ``None`` if there is none."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images that are decoded at each access: the ``Images`` of a split too large for memory.

    Colours become RGB; alpha is ignored; 16 bits become 8; the orientation in EXIF is applied.

    Attributes:
        encoded: the images.
        size: (H, W) of the images.
        channels: 1 for grey, 3 for RGB.
        resize: scale the shorter side to H = W and cut out the centre. Otherwise every image has this size.
        cache: where decoded pixels are kept, if anywhere.
    """

    encoded: Encoded
    size: tuple[int, int]
    channels: int
    resize: bool = False
    cache: PixelCache | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.encoded), *self.size, self.channels)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at these indices, (B, H, W, C) uint8."""
        batch = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for row, index in zip(batch, indices.tolist(), strict=True):
            row[:] = cached_pixels(self.cache, self.encoded, index, self._settings, partial(self._decoded, index))
        return torch.from_numpy(batch)

    def fingerprint(self, index: int) -> str | None:
        """The fingerprint of the encoded image with the decoding settings; ``None`` if it has no fingerprint.

        Raises:
            TutelageError: the image's file does not exist any more.
        """
        with _readable_or_error(self.encoded, index):
            source = self.encoded.fingerprint(index)
        return source and f"{source} {self._settings}"

    @property
    def _settings(self) -> str:
        return f"as {self.shape[1:]}{' resized' if self.resize else ''} upright"

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        with open_image(self.encoded, index) as image:
            return self._pixels(image)

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        image = upright(image, self.channels)
        if self.resize:
            image = centre_square(image, self.size[0])
        if (image.height, image.width) != self.size:
            raise ValueError(f"{image.width}x{image.height} pixels, but it had {self.size[1]}x{self.size[0]} before")
        return np.asarray(image).reshape(self.shape[1:])


def cached_pixels(
    cache: PixelCache | None, encoded: Encoded, index: int, settings: str, decode: Callable[[], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """The decoded pixels of an image, (H, W, C): from the cache if it has them, else decoded, and cached.

    A file is identified by its path, size and time of change, other images by their content.

    Raises:
        TutelageError: the image cannot be read.
    """
    if cache is None:
        return decode()
    with _readable_or_error(encoded, index):
        source = encoded[index]
        if isinstance(source, bytes):
            identity = hashlib.blake2b(source, digest_size=16).hexdigest()
        else:
            path = os.path.abspath(source)
            status = os.stat(path)
            identity = f"{path} {status.st_size} {status.st_mtime_ns}"
    return cache.pixels(f"{identity} {settings}", decode)


class Header(NamedTuple):
    """The size (H, W) of an image, and whether it is grey, read without decoding its pixels."""

    size: tuple[int, int]
    grey: bool


def read_headers(encoded: Encoded) -> list[Header]:
    """The header of each image; refuses dangerously large images here instead of during training."""
    headers = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index in range(len(encoded)):
            with open_image(encoded, index) as image:
                grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
                turned = _orientation(image) >= 5  # by 90 degrees
                headers.append(Header(image.size if turned else (image.height, image.width), grey))
    return headers


def decodes(encoded: Encoded, index: int, *, image_size: int | None) -> bool:
    """Whether an image can be decoded and, if ``image_size`` is given, resized."""
    try:
        with open_image(encoded, index) as image:
            image.load()
            if image_size is not None:
                scaled_size(image.size, image_size)
    except TutelageError:
        return False
    return True


@contextmanager
def open_image(encoded: Encoded, index: int) -> Iterator[Image.Image]:
    """One opened image; reading errors become one-line messages with its name."""
    with _readable_or_error(encoded, index):
        source = encoded[index]
        try:
            opened = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError("it is not a PNG, JPEG, WebP or BMP file") from error
        with opened as image:
            yield image


@contextmanager
def _readable_or_error(encoded: Encoded, index: int) -> Iterator[None]:
    name = encoded.name(index)
    try:
        yield
    except BOMB as error:
        raise TutelageError(
            f"the image {name} is too large ({one_line(error)}); scale it down or remove it, or leave out every such "
            "image with --skip-bad (skip_bad=True)"
        ) from error
    except UNREADABLE as error:
        raise TutelageError(
            f"the image {name} cannot be read ({one_line(error)}); replace or remove it, or leave out every such image "
            "with --skip-bad (skip_bad=True)"
        ) from error


def upright(image: Image.Image, channels: int) -> Image.Image:
    """The image with 1 (grey) or 3 channels (RGB) of 8 bits, turned as its EXIF orientation says."""
    return _eight_bits(turned(image), "L" if channels == 1 else "RGB")


def turned(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, with the values of its pixels."""
    transpose = UPRIGHT.get(_orientation(image))
    return image if transpose is None else image.transpose(transpose)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        # Not image.getexif(): for a PNG it decodes the pixels to look behind them.
        number = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return number if number in UPRIGHT else 1
    except Exception:  # a damaged EXIF block does not affect the pixels, and its errors share no class
        return 1


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):  # through RGBA: otherwise Pillow warns about palettes with transparent entries
        image = image.convert("RGBA")
    if image.mode != mode:
        return image.convert(mode)
    image.load()  # now, as convert does, which would copy the pixels
    return image


def centre_square(
    image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The shorter side scaled to ``side``, by default with an antialiased bicubic filter, then the middle square."""
    width, height = scaled_size(image.size, side)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), resampling).crop((left, top, left + side, top + side))


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A width and a height scaled so that the shorter one is ``side``."""
    scale = side / min(size)
    width, height = (max(side, round(length * scale)) for length in size)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} is too long and thin for {side} pixels")
    return width, height
