"""Encoded pictures (PNG, JPEG, WebP, BMP) as images: in memory if they fit, else read when needed."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.views import Views
from tutelage.errors import TutelageError, one_line

IN_MEMORY = 2**30  # bytes of decoded pixels, over all parts
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class Encoded(Protocol):
    """Pictures that are not decoded yet. Can be pickled, so that worker processes can read them."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> Path | bytes:
        """A file, or what would be in it."""
        ...

    def name(self, place: int) -> str:
        """What an error calls this picture."""
        ...

    def stamp(self, place: int) -> str | None:
        """What tells this picture from another without opening it; ``None`` where nothing does."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Pictures that are decoded each time they are asked for: the ``Images`` of a part too large for memory.

    Colours become RGB; alpha and the orientation in EXIF are left aside; 16 bits become 8.

    Attributes:
        encoded: the pictures.
        size: (H, W) of the images.
        channels: 1 for grey, 3 for RGB.
        resize: scale the shorter side to H = W and cut out the centre. Otherwise every picture has this size.
    """

    encoded: Encoded
    size: tuple[int, int]
    channels: int
    resize: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (len(self.encoded), *self.size, self.channels)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at these places, (B, H, W, C) uint8."""
        batch = np.empty((len(index), *self.shape[1:]), np.uint8)
        for row, place in zip(batch, index.tolist(), strict=True):
            with _opened(self.encoded, place) as image:
                row[:] = self._pixels(image)
        return torch.from_numpy(batch)

    def stamp(self, place: int) -> str | None:
        """The picture's stamp and what is made of the picture; ``None`` where that has none.

        Raises:
            TutelageError: the picture's file is not there any more.
        """
        with _readable(self.encoded, place):
            stamp = self.encoded.stamp(place)
        return stamp and f"{stamp} as {self.shape[1:]}{' resized' if self.resize else ''}"

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        image = _eight_bits(image, "L" if self.channels == 1 else "RGB")
        if self.resize:
            image = _centre(image, self.size[0])
        if (image.height, image.width) != self.size:
            raise ValueError(f"{image.width}x{image.height} pixels, but it had {self.size[1]}x{self.size[0]} before")
        return np.asarray(image).reshape(self.shape[1:])


def assemble(
    name: str,
    classes: tuple[str, ...],
    parts: Mapping[str, tuple[Encoded, Tensor]],
    *,
    image_size: int | None,
    record: Mapping[str, Any],
    in_memory_bytes: int = IN_MEMORY,
) -> Data:
    """A data set from pictures and labels.

    Args:
        name, classes: as ``Data`` has them.
        parts: ``train``, ``test`` and maybe ``validation``, which becomes the test part if there is none.
        image_size: side in pixels to scale and cut every picture to; ``None`` if they have one size already.
        record: what to say of where they came from.
        in_memory_bytes: how many bytes all decoded pixels may take in memory; above that they stay files.
    """
    test_from = "test" if "test" in parts else "validation"
    parts = {("test" if part == test_from else part): content for part, content in parts.items()}
    images = _read({part: encoded for part, (encoded, _) in parts.items()}, image_size, in_memory_bytes)
    splits = {part: Split.of(images[part], labels) for part, (_, labels) in parts.items()}
    _, height, _, channels = splits["train"].images.shape
    entry = {"test_from": test_from, "resized_to": image_size, "in_memory": splits["train"].in_memory}
    return Data(
        name,
        classes,
        **splits,
        views=Views(pad=height // 8, flip=channels == 3),
        record=({**record, **entry},),
    )


def _read(parts: Mapping[str, Encoded], image_size: int | None, in_memory_bytes: int) -> dict[str, Tensor | ImageFiles]:
    """Every part as images of one shape, of which only the headers are read unless all fit into memory."""
    if image_size is not None and image_size < 1:
        raise TutelageError(f"the image size must be 1 pixel or more, got {image_size}")
    seen: dict[tuple[int, int], str] = {}
    grey = True
    for encoded in parts.values():
        for place, header in enumerate(_headers(encoded)):
            seen.setdefault(header.size, encoded.name(place))
            grey = grey and header.grey
    if image_size is None and len(seen) > 1:
        examples = " and ".join(f"{name} {h}x{w}" for (h, w), name in list(seen.items())[:2])
        raise TutelageError(
            f"the images have {len(seen)} sizes, for instance {examples}; give --image-size N (image_size=N)"
        )
    size = (image_size, image_size) if image_size else next(iter(seen), (0, 0))
    files = {
        part: ImageFiles(encoded, size, 1 if grey else 3, resize=image_size is not None)
        for part, encoded in parts.items()
    }
    total = sum(int(np.prod(part.shape)) for part in files.values())
    return {part: _decoded(images) for part, images in files.items()} if total <= in_memory_bytes else {**files}


def _decoded(images: ImageFiles) -> Tensor:
    """All of them, (N, H, W, C) uint8, in threads: Pillow lets go of the interpreter while it decodes."""
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    chunks = torch.split(torch.arange(len(pixels)), 64)
    with ThreadPoolExecutor() as pool:
        for places, batch in zip(chunks, pool.map(images.__getitem__, chunks), strict=True):
            pixels[places] = batch
    return pixels


class Header(NamedTuple):
    """What a picture says of itself before it is decoded: (H, W), and whether it has no colour."""

    size: tuple[int, int]
    grey: bool


def _headers(encoded: Encoded) -> list[Header]:
    """Every header; a picture that is dangerously large is refused here, not half-way through training."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for place in range(len(encoded)):
            with _opened(encoded, place) as image:
                grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
                found.append(Header((image.height, image.width), grey))
    return found


@contextmanager
def _opened(encoded: Encoded, place: int) -> Iterator[Image.Image]:
    """One picture; whatever is wrong with it is told in one line with its name."""
    with _readable(encoded, place):
        source = encoded[place]
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image


@contextmanager
def _readable(encoded: Encoded, place: int) -> Iterator[None]:
    name = encoded.name(place)
    try:
        yield
    except BOMB as error:
        raise TutelageError(f"the image {name} is too large ({one_line(error)}); scale it down or remove it") from error
    except UNREADABLE as error:
        raise TutelageError(f"the image {name} cannot be read ({one_line(error)}); replace or remove it") from error


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """The picture in mode L or RGB."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):  # by way of RGBA, or Pillow warns where the palette has transparent entries
        image = image.convert("RGBA")
    return image.convert(mode)


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The shorter side scaled to ``side`` with an antialiased bicubic filter, then the middle square."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is too long and thin for {side} pixels")
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
