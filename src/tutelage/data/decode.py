"""Encoded images (PNG, JPEG, WebP, BMP) as images: in memory if they fit, else read when needed."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.stratified import split_off_test
from tutelage.data.views import CropsAndFlips
from tutelage.errors import TutelageError, TutelageWarning, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""The only formats that are ever decoded, whatever a file is called: no other decoder of Pillow sees a user's file."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the orientation in its EXIF."""

IN_MEMORY = 2**30  # bytes of decoded pixels, over all splits
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class Encoded(Protocol):
    """Images that are not decoded yet. Can be pickled, so that worker processes can read them."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> Path | bytes:
        """A file, or what would be in it."""
        ...

    def name(self, place: int) -> str:
        """What an error calls this image."""
        ...

    def fingerprint(self, place: int) -> str | None:
        """What tells this image from another without opening it; ``None`` where nothing does."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Images that are decoded each time they are asked for: the ``Images`` of a split too large for memory.

    Colours become RGB; alpha is ignored; 16 bits become 8; the orientation in EXIF is applied.

    Attributes:
        encoded: the images.
        size: (H, W) of the images.
        channels: 1 for grey, 3 for RGB.
        resize: scale the shorter side to H = W and cut out the centre. Otherwise every image has this size.
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

    def fingerprint(self, place: int) -> str | None:
        """The image's stamp and what is made of the image; ``None`` where that has none.

        Raises:
            TutelageError: the image's file is not there any more.
        """
        with _readable(self.encoded, place):
            stamp = self.encoded.fingerprint(place)
        return stamp and f"{stamp} as {self.shape[1:]}{' resized' if self.resize else ''} upright"

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        turn = UPRIGHT.get(_orientation(image))
        image = _eight_bits(image, "L" if self.channels == 1 else "RGB")
        image = image if turn is None else image.transpose(turn)
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
    test: float | None = None,
    skip_bad: bool = False,
    in_memory_bytes: int = IN_MEMORY,
) -> Data:
    """A data set from images and labels.

    Args:
        name, classes: as ``Data`` has them.
        parts: ``train``, and optionally ``test`` and ``validation``. Without ``test`` the validation split becomes the
            test split; without both, a share of the training split does, with a warning.
        image_size: side in pixels to scale and cut every image to; ``None`` if they have one size already.
        record: what to say of where they came from.
        test: the share of the training split that becomes the test split where there is none.
        skip_bad: leave out images that cannot be decoded; a warning and the record have their number.
        in_memory_bytes: how many bytes all decoded pixels may take in memory; above that they stay files.
    """
    if test is not None and len(parts) > 1:
        raise TutelageError(f"{name} has a test split of its own; leave out the test share of {test}")
    skipped: dict[str, int] = {}
    if skip_bad:
        good = {part: _good(encoded, image_size) for part, (encoded, _) in parts.items()}
        skipped = {part: lost for part, (encoded, _) in parts.items() if (lost := len(encoded) - len(good[part]))}
        if skipped:
            _warn_of_skipped(name, {part: encoded for part, (encoded, _) in parts.items()}, good)
        parts = {part: (Some(encoded, good[part]), labels[good[part]]) for part, (encoded, labels) in parts.items()}
    images = _read({part: encoded for part, (encoded, _) in parts.items()}, image_size, in_memory_bytes)
    splits = {part: Split.of(images[part], labels) for part, (_, labels) in parts.items()}
    entry: dict[str, Any] = {**record, "test_from": "test"}
    if len(splits) == 1:
        splits["train"], splits["test"], about = split_off_test(splits["train"], test, name)
        entry |= about
    elif "test" not in splits:
        splits["test"] = splits.pop("validation")
        entry["test_from"] = "validation"
        warnings.warn(
            TutelageWarning(f"{name} has no test split, so its validation split is the test split"), stacklevel=4
        )
    _, height, _, channels = splits["train"].inputs.shape
    entry |= {"resized_to": image_size, "in_memory": splits["train"].in_memory}
    entry |= {"skipped": skipped} if skipped else {}
    return Data(name, classes, **splits, views=CropsAndFlips(pad=height // 8, flip=channels == 3), record=(entry,))


@dataclass(frozen=True)
class Some:
    """Some of a larger set of images."""

    encoded: Encoded
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Path | bytes:
        return self.encoded[self.places[place]]

    def name(self, place: int) -> str:
        """What the larger set calls it."""
        return self.encoded.name(self.places[place])

    def fingerprint(self, place: int) -> str | None:
        """Its stamp in the larger set."""
        return self.encoded.fingerprint(self.places[place])


def _good(encoded: Encoded, image_size: int | None) -> list[int]:
    """The places of the images that can be decoded, and scaled where that is wanted."""

    def decodes(place: int) -> bool:
        try:
            with _opened(encoded, place) as image:
                image.load()
                if image_size is not None:
                    _scaled(image.size, image_size)
        except TutelageError:
            return False
        return True

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return [place for place, good in enumerate(pool.map(decodes, range(len(encoded)))) if good]


def _warn_of_skipped(name: str, parts: Mapping[str, Encoded], good: Mapping[str, Sequence[int]]) -> None:
    bad = [encoded.name(p) for part, encoded in parts.items() for p in sorted(set(range(len(encoded))) - {*good[part]})]
    total = sum(len(encoded) for encoded in parts.values())
    warnings.warn(
        TutelageWarning(f"{name}: {len(bad)} of {total} images cannot be read and are left out, first {bad[0]}"),
        stacklevel=5,
    )


def _read(parts: Mapping[str, Encoded], image_size: int | None, in_memory_bytes: int) -> dict[str, Tensor | ImageFiles]:
    """Every split as images of one shape, of which only the headers are read unless all fit into memory."""
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
    """What an image says of itself before it is decoded: (H, W), and whether it has no colour."""

    size: tuple[int, int]
    grey: bool


def _headers(encoded: Encoded) -> list[Header]:
    """Every header; an image that is dangerously large is refused here, not half-way through training."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for place in range(len(encoded)):
            with _opened(encoded, place) as image:
                grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
                turned = _orientation(image) >= 5  # by 90 degrees
                found.append(Header(image.size if turned else (image.height, image.width), grey))
    return found


@contextmanager
def _opened(encoded: Encoded, place: int) -> Iterator[Image.Image]:
    """One image; whatever is wrong with it is told in one line with its name."""
    with _readable(encoded, place):
        source = encoded[place]
        try:
            opened = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError("it is no PNG, JPEG, WebP or BMP") from error
        with opened as image:
            yield image


@contextmanager
def _readable(encoded: Encoded, place: int) -> Iterator[None]:
    name = encoded.name(place)
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


def _orientation(image: Image.Image) -> int:
    """The orientation in the EXIF of an image's header, 1 to 8; 1 where there is none that can be read."""
    try:
        # Not image.getexif(): for a PNG it decodes the pixels to look behind them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # a damaged EXIF block says nothing of the pixels, and its errors share no class
        return 1


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        levels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):  # by way of RGBA, or Pillow warns where the palette has transparent entries
        image = image.convert("RGBA")
    return image.convert(mode)


def _centre(image: Image.Image, side: int) -> Image.Image:
    """The shorter side scaled to ``side`` with an antialiased bicubic filter, then the middle square."""
    width, height = _scaled(image.size, side)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A width and a height scaled so that the shorter one is ``side``."""
    scale = side / min(size)
    width, height = (max(side, round(length * scale)) for length in size)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} is too long and thin for {side} pixels")
    return width, height
