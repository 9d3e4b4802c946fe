"""Images with saliency maps: a folder of images, of maps and of fixations for each split."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tutelage.data.assemble import Reading, read_images
from tutelage.data.data import Data, Split
from tutelage.data.decode import Header, open_image, read_headers, scaled_size, upright
from tutelage.data.formats.fixations import SHARE_OF_DEGREE, fixation_planes, read_fixations
from tutelage.data.formats.folder import SUFFIXES, Files
from tutelage.data.memory import check_fits
from tutelage.data.stratified import split_off_test
from tutelage.data.targets import Maps
from tutelage.data.views import CropsAndFlips
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import read_file
from tutelage.text import value_text

NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
IMAGES, MAPS, FIXATIONS = "images", "maps", "fixations"
DEGREE = "pixels_per_degree.txt"
LAYOUT = (
    "images belong in train/images/ and test/images/ (and, if you like, val/images/), or all in images/; beside each "
    "images/, maps/ has grey images and fixations/ CSV files with columns x,y, named as their images"
)


def load(
    folder: Path,
    image_size: int | None = None,
    *,
    test: float | None = None,
    reading: Reading = Reading(),  # noqa: B008 - a frozen value
) -> Data:
    """``train/images/NAME.jpg`` with ``train/maps/NAME.png``, ``train/fixations/NAME.csv`` or both; so for ``test``.

    ``val`` is optional. Without those folders, ``images``, ``maps`` and ``fixations`` lie in the folder itself, and a
    share of the images becomes the test split. A map is a grey image, whose brightness is the density of fixations. A
    CSV file has the points x and y in pixels of the image as it is stored. Without a map the density is the sum of a
    Gaussian of one degree of visual angle around each fixation: the number of pixels in ``pixels_per_degree.txt`` of
    the folder, or else a thirtieth of the longer side. Images with neither are unlabelled. Points outside of their
    image are left out, and a warning counts them.

    Images are augmented by mirroring alone, since people look at the centre of a frame, which crops would move.

    Args:
        folder: where the splits are.
        image_size: side in pixels to which images and maps are scaled and cut; ``None`` if images have one size.
        test: the share that becomes the test split where there is no such folder; by default 0.2.
        reading: how images are read during training.

    Raises:
        TutelageError: a file is missing or superfluous, or cannot be used; the text names it.
    """
    parts = {split: folder / name for split, names in NAMES.items() for name in names if (folder / name).is_dir()}
    if not parts:
        parts = {"train": folder}
    elif missing := [name for name in ("train", "test") if name not in parts]:
        raise TutelageError(f"{folder} has no folder {missing[0]}; {LAYOUT}")
    elif test is not None:
        raise TutelageError(f"maps:{folder} has a test split already; leave out the test share of {test}")
    files = {split: _images(path) for split, path in parts.items()}
    inputs = read_images(files, image_size, Reading(cache=reading.cache))
    height, width = next(iter(inputs.values())).shape[1:3]
    total = sum(map(len, files.values()))
    check_fits(8 * total * height * width, f"the maps of {total} images of {folder}", "give a smaller --image-size")
    degree = _degree(folder / DEGREE)
    labels = {
        split: _labels(parts[split], images, (height, width), image_size is not None, degree)
        for split, images in files.items()
    }
    splits = {split: Split.of(inputs[split], labels[split], targets=Maps()) for split in files}
    names = {split: tuple(images.name(number) for number in range(len(images))) for split, images in files.items()}
    entry = {"source": "maps", "resized_to": image_size, "pixels_per_degree": degree, "test_from": "test"}
    if len(splits) == 1:
        splits["train"], splits["test"], entry_of_test = split_off_test(splits["train"], test, f"maps:{folder}")
        entry |= entry_of_test
    return Data(
        f"maps:{folder}",
        ("saliency",),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        views=CropsAndFlips(pad=0, flip=True),
        record=(entry,),
        files=names["train"],
        test_files=names.get("test", names["train"]),
    )


@dataclass(frozen=True)
class _Frame:
    """How an image of any size is scaled and cut, and its labels with it.

    Attributes:
        scaled: (H, W) after scaling.
        size: (H, W) of the part in the middle that remains.
    """

    scaled: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, header: Header, size: tuple[int, int], resize: bool) -> _Frame:
        height, width = header.size
        return cls(scaled_size((width, height), size[0])[::-1] if resize else header.size, size)

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the part that remains."""
        return (self.scaled[0] - self.size[0]) // 2, (self.scaled[1] - self.size[1]) // 2


def _images(part: Path) -> Files:
    """The images of a split; their names without suffix are those of their maps and fixations."""
    folder = part / IMAGES
    if not folder.is_dir():
        raise TutelageError(f"{part} has no folder {IMAGES}; {LAYOUT}")
    names = sorted(file.name for file in folder.iterdir() if _visible(file) and file.suffix.lower() in SUFFIXES)
    if not names:
        raise TutelageError(f"{folder} has no image ({', '.join(sorted(SUFFIXES))}); {LAYOUT}")
    stems: dict[str, str] = {}
    for name in names:
        if (other := stems.setdefault(Path(name).stem, name)) != name:
            raise TutelageError(f"{folder} has {other} and {name}, whose labels would have one name; rename one")
    return Files(str(folder), tuple(names))


def _labels(part: Path, images: Files, size: tuple[int, int], resize: bool, degree: float | None) -> Tensor:
    """The labels of a split's images: (N, 2, H, W) float32."""
    stems = {Path(name).stem: number for number, name in enumerate(images.names)}
    maps, fixations = _beside(part / MAPS, stems, SUFFIXES), _beside(part / FIXATIONS, stems, frozenset({".csv"}))
    drawn = Files(str(part / MAPS), tuple(file.name for file in maps.values()))
    places = {number: place for place, number in enumerate(maps)}
    headers, map_headers = read_headers(images), read_headers(drawn)
    labels = torch.full((len(images), 2, *size), float("nan"))
    outside: list[tuple[int, Path]] = []

    def fill(number: int) -> None:
        frame = _Frame.of(headers[number], size, resize)
        if number in fixations:
            labels[number], count = _fixated(fixations[number], headers[number], frame, degree)
            if count:
                outside.append((count, fixations[number]))
        if number in places:
            _check_shape(drawn.name(places[number]), map_headers[places[number]], headers[number])
            labels[number, 0] = _density(drawn, places[number], frame)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, sorted({*maps, *fixations})))
    if outside:
        total, first = sum(count for count, _ in outside), min(file for _, file in outside)
        warnings.warn(
            TutelageWarning(f"{total} fixations lie outside of their images and are left out, first in {first}"),
            stacklevel=5,
        )
    return labels


def _beside(folder: Path, stems: Mapping[str, int], suffixes: frozenset[str]) -> dict[int, Path]:
    """The files of a folder of labels by the number of their image; none if there is no such folder."""
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not _visible(file):
            continue
        if file.suffix.lower() not in suffixes:
            raise TutelageError(f"{file} is no {' or '.join(sorted(suffixes))} file; convert or remove it; {LAYOUT}")
        if file.stem not in stems:
            raise TutelageError(f"{file} has no image of its name in {folder.parent / IMAGES}; add or remove it")
        if stems[file.stem] in files:
            raise TutelageError(f"{file} and {files[stems[file.stem]].name} belong to one image; remove one of them")
        files[stems[file.stem]] = file
    return files


def _fixated(file: Path, header: Header, frame: _Frame, degree: float | None) -> tuple[Tensor, int]:
    """The labels of an image from its fixations, and the number of points outside of the image."""
    points = read_fixations(file)
    height, width = header.size
    inside = ((points >= 0) & (points < torch.tensor([width, height]))).all(1)
    if not bool(inside.any()):
        x, y = points[0].tolist()
        raise TutelageError(
            f"{file}: no fixation lies in its image of {width} x {height} pixels, first x {x:g}, y {y:g}; x runs from "
            f"0 to {width} and y from 0 to {height}"
        )
    scale = torch.tensor([frame.scaled[1] / width, frame.scaled[0] / height], dtype=torch.float64)
    top, left = frame.corner
    sigma = (degree or SHARE_OF_DEGREE * max(height, width)) * float(scale.mean())
    planes = fixation_planes(points[inside] * scale - torch.tensor([left, top]), frame.size, sigma)
    return planes, int((~inside).sum())


def _density(maps: Files, number: int, frame: _Frame) -> Tensor:
    """A map, scaled and cut as its image, with a maximum of 1: (H, W)."""
    with open_image(maps, number) as image:
        grey, (height, width), (top, left) = upright(image, 1), frame.scaled, frame.corner
        if grey.size != (width, height):
            grey = grey.resize((width, height), Image.Resampling.BILINEAR)
        values = np.asarray(grey.crop((left, top, left + frame.size[1], top + frame.size[0])), np.float32)
    if not values.any():
        raise TutelageError(f"the map {maps.name(number)} is black where its image is shown; remove it")
    return torch.from_numpy(values / values.max())


def _check_shape(name: str, drawn: Header, image: Header) -> None:
    """Refuse a map of another ratio of height and width, which cannot cover its image."""
    (map_height, map_width), (height, width) = drawn.size, image.size
    if abs(map_height * width - map_width * height) > max(height, width, map_height, map_width):
        raise TutelageError(
            f"the map {name} has {map_width} x {map_height} pixels and its image {width} x {height}, of another ratio; "
            "save a map that covers the whole image"
        )


def _degree(file: Path) -> float | None:
    """The number in the file, if there is one."""
    if not file.is_file():
        return None
    text = read_file(file).decode("utf-8", "replace").strip()
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise TutelageError(f"{file} has {value_text(text)}; write the pixels of a degree of visual angle, such as 30")
    return value


def _visible(file: Path) -> bool:
    return not file.name.startswith(".") and file.is_file()
