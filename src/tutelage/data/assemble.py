"""Data sets of encoded images: in memory if they fit, otherwise decoded batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.decode import Encoded, ImageFiles, decodes, read_headers
from tutelage.data.images import Images
from tutelage.data.pixel_cache import PixelCache
from tutelage.data.stratified import split_off_test
from tutelage.data.targets import Classes, Targets
from tutelage.data.views import CropsAndFlips
from tutelage.data.whole_images import WholeImages
from tutelage.errors import TutelageError, TutelageWarning

IN_MEMORY = 2**30  # bytes of decoded pixels, over all splits


@dataclass(frozen=True, slots=True)
class Reading:
    """How the images of a data set are read during training.

    Attributes:
        whole: read random boxes of whole images, for random resized crops, if they are resized at all; evaluation then
            reads the middle 7/8 of the shorter side. Otherwise every image is scaled and cut once.
        cache: where decoded pixels are kept, if anywhere.
        in_memory_bytes: decode all images into memory if they take at most so many bytes, unless they are whole.
    """

    whole: bool = False
    cache: PixelCache | None = None
    in_memory_bytes: int = IN_MEMORY


def assemble(
    name: str,
    classes: tuple[str, ...],
    encoded_splits: Mapping[str, tuple[Encoded, Tensor]],
    *,
    image_size: int | None,
    record: Mapping[str, Any],
    test: float | None = None,
    skip_bad: bool = False,
    reading: Reading = Reading(),
    targets: Targets = Classes(),  # noqa: B008 - a frozen value
    image_files: type[ImageFiles] = ImageFiles,
) -> Data:
    """A data set from encoded images and labels.

    Args:
        name, classes: as ``Data`` has them.
        encoded_splits: ``train``, and optionally ``test`` and ``validation``. Without ``test`` the validation split
            becomes the test split; without both, a share of the training split does, with a warning.
        image_size: side in pixels to scale and cut every image to; ``None`` if they have one size already.
        record: the entry of the record about the source.
        test: the share of the training split for testing, if there is no test split.
        skip_bad: leave out images that cannot be decoded; a warning and the record say how many.
        reading: how images are read during training.
        targets: what the labels are.
        image_files: how files become images of one size, unless they are read whole.
    """
    if test is not None and len(encoded_splits) > 1:
        raise TutelageError(f"{name} has a test split already; leave out the test share of {test}")
    skipped: dict[str, int] = {}
    if skip_bad:
        decodable = {split: _decodable(encoded, image_size) for split, (encoded, _) in encoded_splits.items()}
        skipped = {
            split: missing
            for split, (encoded, _) in encoded_splits.items()
            if (missing := len(encoded) - len(decodable[split]))
        }
        if skipped:
            _warn_of_skipped(name, {split: encoded for split, (encoded, _) in encoded_splits.items()}, decodable)
        encoded_splits = {
            split: (EncodedSubset(encoded, decodable[split]), labels[decodable[split]])
            for split, (encoded, labels) in encoded_splits.items()
        }
    images = read_images(
        {split: encoded for split, (encoded, _) in encoded_splits.items()}, image_size, reading, image_files
    )
    splits = {split: Split.of(images[split], labels, targets=targets) for split, (_, labels) in encoded_splits.items()}
    entry: dict[str, Any] = {**record, "test_from": "test"}
    if len(splits) == 1:
        splits["train"], splits["test"], entry_of_test = split_off_test(splits["train"], test, name)
        entry |= entry_of_test
    elif "test" not in splits:
        splits["test"] = splits.pop("validation")
        entry["test_from"] = "validation"
        warnings.warn(
            TutelageWarning(f"{name} has no test split, so its validation split is the test split"), stacklevel=4
        )
    _, height, _, channels = splits["train"].inputs.shape
    entry |= {"resized_to": image_size, "in_memory": splits["train"].in_memory}
    entry |= {"skipped": skipped} if skipped else {}
    views = CropsAndFlips(pad=height // 8, flip=channels == 3)
    # A test split that was split off has the positions of its samples among all files.
    test_source = next(split for split in ("test", "validation", "train") if split in encoded_splits)
    files, test_files = (_names(encoded_splits[split][0]) for split in ("train", test_source))
    return Data(name, classes, **splits, views=views, record=(entry,), files=files, test_files=test_files)


def _names(encoded: Encoded) -> tuple[str, ...]:
    return tuple(encoded.name(position) for position in range(len(encoded)))


@dataclass(frozen=True)
class EncodedSubset:
    """A subset of encoded images."""

    encoded: Encoded
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Path | bytes:
        return self.encoded[self.indices[index]]

    def name(self, index: int) -> str:
        """The name in the full set."""
        return self.encoded.name(self.indices[index])

    def fingerprint(self, index: int) -> str | None:
        """The fingerprint in the full set."""
        return self.encoded.fingerprint(self.indices[index])


def _decodable(encoded: Encoded, image_size: int | None) -> list[int]:
    """The indices of the images that can be decoded and, if ``image_size`` is given, resized."""

    can_decode = partial(decodes, encoded, image_size=image_size)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return [index for index, success in enumerate(pool.map(can_decode, range(len(encoded)))) if success]


def _warn_of_skipped(name: str, splits: Mapping[str, Encoded], decodable: Mapping[str, Sequence[int]]) -> None:
    unreadable = [
        encoded.name(p)
        for split, encoded in splits.items()
        for p in sorted(set(range(len(encoded))) - {*decodable[split]})
    ]
    total = sum(len(encoded) for encoded in splits.values())
    warnings.warn(
        TutelageWarning(
            f"{name}: {len(unreadable)} of {total} images cannot be read and are left out, first {unreadable[0]}"
        ),
        stacklevel=5,
    )


def read_images(
    splits: Mapping[str, Encoded],
    image_size: int | None,
    reading: Reading,
    image_files: type[ImageFiles] = ImageFiles,
) -> dict[str, Tensor | ImageFiles | WholeImages]:
    """The images of each split, of one shape: decoded if all fit into memory, otherwise only their headers are read."""
    if image_size is not None and image_size < 1:
        raise TutelageError(f"the image size must be 1 pixel or more, got {image_size}")
    names_by_size: dict[tuple[int, int], str] = {}
    headers = {split: read_headers(encoded) for split, encoded in splits.items()}
    for split, encoded in splits.items():
        for index, header in enumerate(headers[split]):
            names_by_size.setdefault(header.size, encoded.name(index))
    channels = 1 if all(header.grey for listed in headers.values() for header in listed) else 3
    if image_size is None and len(names_by_size) > 1:
        examples = " and ".join(f"{name} {h}x{w}" for (h, w), name in list(names_by_size.items())[:2])
        raise TutelageError(
            f"the images have {len(names_by_size)} sizes, for instance {examples}; give --image-size N (image_size=N)"
        )
    size = (image_size, image_size) if image_size else next(iter(names_by_size), (0, 0))
    if reading.whole and image_size:
        sizes = {split: torch.tensor([header.size for header in listed]) for split, listed in headers.items()}
        return {
            split: WholeImages(encoded, size, channels, sizes[split], reading.cache)
            for split, encoded in splits.items()
        }
    files = {
        split: image_files(encoded, size, channels, image_size is not None, reading.cache)
        for split, encoded in splits.items()
    }
    total = sum(int(np.prod(images.shape)) for images in files.values())
    fits = total <= reading.in_memory_bytes
    return {split: decoded(images) for split, images in files.items()} if fits else {**files}


def decoded(images: Images) -> Tensor:
    """All images, (N, H, W, C) uint8, decoded in threads: Pillow releases the interpreter lock."""
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    chunks = torch.split(torch.arange(len(pixels)), 64)
    with ThreadPoolExecutor() as pool:
        for indices, batch in zip(chunks, pool.map(images.__getitem__, chunks), strict=True):
            pixels[indices] = batch
    return pixels
