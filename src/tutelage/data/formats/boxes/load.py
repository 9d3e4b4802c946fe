"""``boxes:FOLDER``: images with boxes of objects, in the layout of Pascal VOC or of COCO."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.assemble import Reading, assemble
from tutelage.data.data import Data
from tutelage.data.decode import decodes, read_headers
from tutelage.data.formats.boxes import coco, voc
from tutelage.data.formats.boxes.annotated import AnnotatedImage, Box
from tutelage.data.formats.boxes.letterbox import LetterboxedFiles, Placement, placement
from tutelage.data.targets.boxes import COLUMNS, Boxes
from tutelage.errors import TutelageError, TutelageWarning

LAYOUT = (
    "it needs Annotations/*.xml and JPEGImages/ as Pascal VOC has, or annotations/instances_train*.json as COCO has, "
    "or a file _annotations.coco.json or annotations.json, with images beside it, in each of train, valid and test, or "
    "a single JSON file for all images"
)


def load(
    folder: Path,
    image_size: int | None = None,
    *,
    test: float | None = None,
    skip_bad: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - a frozen value
) -> Data:
    """Images with boxes, in the layout of Pascal VOC or of COCO.

    VOC: ``Annotations/NAME.xml``, ``JPEGImages/NAME.jpg`` and ``ImageSets/Main/{train,val,trainval,test}.txt``. COCO:
    ``annotations/instances_{train,val,test}*.json`` with images in folders of the same names, or one file for each
    split in ``train``, ``valid`` and ``test``, or a single JSON file for all, with images beside it or in ``images`` or
    ``data``. Without a test split the validation split becomes it; without both, a share of the images does.

    With an ``image_size`` each image is scaled so that its longer side fits a square of this size, in the middle of
    which it is put; the rest is black. Boxes are scaled alike. Without an ``image_size`` all images must have one size.
    The EXIF orientation is applied, and the boxes are those of the upright image. Boxes are cut at the rim; those
    without area are left out and counted in a warning. VOC's difficult boxes and COCO's crowds are kept as ignored.

    Classes are those of the training boxes, sorted by name for VOC and in the order of their numbers for COCO.

    Args:
        folder: as above.
        image_size: side of the square in pixels.
        test: the share that becomes the test split if there is none; by default 0.2.
        skip_bad: leave out images that cannot be decoded.
        reading: how images are read during training; never in random boxes.

    Raises:
        TutelageError: the layout is another one, or a file cannot be used; the text names it.
    """
    splits, order = _read(folder)
    skipped: dict[str, int] = {}
    if skip_bad:
        splits, skipped = _readable(f"boxes:{folder}", splits)
    classes = _classes(splits, order)
    numbers = {name: number for number, name in enumerate(classes)}
    encoded, omitted = {}, 0
    for split, images in splits.items():
        files = _Files(tuple(str(image.file) for image in images), str(folder))
        sizes = [header.size for header in read_headers(files)]
        for image, size in zip(images, sizes, strict=True):
            _check_size(image, size)
        boxes = [_placed(image.boxes, size, image_size, numbers) for image, size in zip(images, sizes, strict=True)]
        omitted += sum(len(image.boxes) - len(rows) for image, rows in zip(images, boxes, strict=True))
        encoded[split] = files, _padded(boxes)
    if omitted:
        warnings.warn(
            TutelageWarning(f"boxes:{folder}: {omitted} boxes have no area within their image and are left out"),
            stacklevel=4,
        )
    extra = ({"skipped": skipped} if skipped else {}) | ({"boxes_left_out": omitted} if omitted else {})
    return assemble(
        f"boxes:{folder}",
        classes,
        encoded,
        image_size=image_size,
        record={"source": "boxes"} | extra,
        test=test,
        reading=replace(reading, whole=False),
        targets=Boxes(),
        image_files=LetterboxedFiles,
    )


def _read(folder: Path) -> tuple[dict[str, list[AnnotatedImage]], Sequence[str]]:
    """The images of each split, and an order of the classes' names; empty to sort them."""
    if (folder / voc.ANNOTATIONS).is_dir() and (folder / voc.IMAGES).is_dir():
        return voc.read(folder), ()
    files = coco.files_of(folder)
    if "train" not in files:
        raise TutelageError(f"{folder} has no training images with boxes: {LAYOUT}")
    return coco.read(folder, files)


def _classes(splits: Mapping[str, Sequence[AnnotatedImage]], order: Sequence[str]) -> tuple[str, ...]:
    """The classes of the training boxes; the other splits must have no other ones."""
    names = {split: {box.name for image in images for box in image.boxes} for split, images in splits.items()}
    if not names["train"]:
        raise TutelageError(f"no training image has a box, first {splits['train'][0].source}; add boxes")
    for split, images in splits.items():
        for image in images:
            if unknown := sorted({box.name for box in image.boxes} - names["train"]):
                raise TutelageError(
                    f"{image.source} has a box of the class {unknown[0]!r:.80} in the {split} image {image.file.name}, "
                    "and no training image has; add training boxes of it, or correct its name"
                )
    return tuple(name for name in order if name in names["train"]) or tuple(sorted(names["train"]))


def _check_size(image: AnnotatedImage, size: tuple[int, int]) -> None:
    """Refuse an image whose annotations are for another size, for example before its EXIF orientation is applied."""
    if image.size is not None and image.size != size:
        (height, width), (stated_height, stated_width) = size, image.size
        turned = " (upright, by its EXIF orientation)" if (width, height) == image.size else ""
        raise TutelageError(
            f"{image.file} has {width}x{height} pixels{turned}, but {image.source} is for "
            f"{stated_width}x{stated_height}; annotate the image as it is shown"
        )


def _placed(
    boxes: Sequence[Box], size: tuple[int, int], side: int | None, numbers: Mapping[str, int]
) -> list[list[float]]:
    """The boxes of an image as rows of ``Boxes``, cut at its rim and scaled with it; without those without area."""
    height, width = size
    place = Placement(0, 0, height, width) if side is None else placement(size, side)
    rows = []
    for box in boxes:
        x1, x2 = (min(max(x, 0.0), width) * (place.width / width) + place.left for x in (box.x1, box.x2))
        y1, y2 = (min(max(y, 0.0), height) * (place.height / height) + place.top for y in (box.y1, box.y2))
        if x2 > x1 and y2 > y1:
            rows.append([x1, y1, x2, y2, float(numbers[box.name]), float(box.kind)])
    return rows


def _padded(boxes: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    """Rows of boxes of each image as one tensor, (N, M, 6), M at least 1."""
    most = max(1, max(map(len, boxes), default=0))
    stacked = torch.zeros(len(boxes), most, COLUMNS)
    stacked[..., 4] = -1
    for row, listed in zip(stacked, boxes, strict=True):
        if listed:
            row[: len(listed)] = torch.tensor(listed)
    return stacked


def _readable(
    name: str, splits: Mapping[str, list[AnnotatedImage]]
) -> tuple[dict[str, list[AnnotatedImage]], dict[str, int]]:
    """The images that can be decoded, and how many of each split cannot."""
    readable = {}
    for split, images in splits.items():
        files = _Files(tuple(str(image.file) for image in images), "")
        readable[split] = [image for number, image in enumerate(images) if decodes(files, number, image_size=None)]
        if not readable[split]:
            raise TutelageError(f"{name}: none of the {len(images)} {split} images can be read; check the files")
    skipped = {split: len(images) - len(readable[split]) for split, images in splits.items()}
    if any(skipped.values()):
        warnings.warn(
            TutelageWarning(f"{name}: {sum(skipped.values())} images cannot be read and are left out"), stacklevel=5
        )
    return readable, {split: count for split, count in skipped.items() if count}


@dataclass(frozen=True)
class _Files:
    """Image files anywhere below a folder."""

    paths: tuple[str, ...]
    root: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return Path(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]

    def fingerprint(self, index: int) -> str:
        """The path below the folder, the size in bytes and the modification time in nanoseconds."""
        status = self[index].stat()
        return f"{self[index].relative_to(self.root)} {status.st_size} {status.st_mtime_ns}"
