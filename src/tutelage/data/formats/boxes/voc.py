"""Annotations in the layout of Pascal VOC: an XML file for each image, and lists of the images of each split."""

from __future__ import annotations

from pathlib import Path

from tutelage.data.formats.boxes.annotated import AnnotatedImage, Box, images_by_stem
from tutelage.data.formats.boxes.xml import Element, parse
from tutelage.data.targets.boxes import DIFFICULT, OBJECT
from tutelage.errors import TutelageError
from tutelage.files import read_file
from tutelage.text import value_text

ANNOTATIONS, IMAGES, SETS = "Annotations", "JPEGImages", Path("ImageSets", "Main")
LISTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
WHOLE = "trainval.txt"  # the training split where there is no train.txt


def read(folder: Path) -> dict[str, list[AnnotatedImage]]:
    """The images of each split; all of them as ``train`` without lists of splits.

    Raises:
        TutelageError: a list names an image without annotations, an image is missing, or a file is damaged.
    """
    images = images_by_stem(folder / IMAGES)
    splits = {split: _listed(folder / SETS / name) for split, name in LISTS.items() if (folder / SETS / name).is_file()}
    if "train" not in splits and (folder / SETS / WHOLE).is_file():
        splits["train"] = _listed(folder / SETS / WHOLE)
    if not splits:
        splits = {"train": sorted(file.stem for file in (folder / ANNOTATIONS).glob("*.xml"))}
    if not splits.get("train"):
        raise TutelageError(f"{folder} lists no training image in {SETS / LISTS['train']} or {SETS / WHOLE}; add some")
    return {split: [_annotated(folder, name, images) for name in names] for split, names in splits.items() if names}


def _listed(file: Path) -> list[str]:
    """The names in a list, which are the first words of its lines."""
    names = [line.split()[0] for line in read_file(file).decode("utf-8", "replace").splitlines() if line.strip()]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TutelageError(f"{file} lists {value_text(twice)} more than once; list each image once")
    return names


def _annotated(folder: Path, name: str, images: dict[str, Path]) -> AnnotatedImage:
    file = folder / ANNOTATIONS / f"{name}.xml"
    if name not in images:
        raise TutelageError(
            f"there is no image {folder / IMAGES / name} with a suffix such as .jpg; add it, or remove it from {SETS}"
        )
    if not file.is_file():
        raise TutelageError(
            f"{images[name]} has no annotations {file}; add them, an <annotation> without <object> for an image "
            f"without objects, or remove it from {SETS}"
        )
    try:
        root = parse(read_file(file))
        size = root.find("size") or Element("size")
        height, width = (int(_number(size, side)) if size.value(side) else 0 for side in ("height", "width"))
        boxes = [_box(element, number) for number, element in enumerate(root.all("object"))]
    except ValueError as error:
        raise TutelageError(f"{file} cannot be read: {error}") from error
    return AnnotatedImage(images[name], boxes, (height, width) if height and width else None, str(file))


def _box(element: Element, number: int) -> Box:
    """An object's box; VOC counts pixels from 1, both ends included, so that the first pixel is from 0 to 1."""
    corners, name = element.find("bndbox"), element.value("name")
    if corners is None or not name:
        raise ValueError(f"object {number} has no {'bndbox' if corners is None else 'name'}; add it")
    x1, y1, x2, y2 = (_number(corners, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    return Box(x1 - 1, y1 - 1, x2, y2, name, DIFFICULT if element.value("difficult") == "1" else OBJECT)


def _number(element: Element, name: str) -> float:
    text = element.value(name)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"<{name}> is {value_text(text)}; give a number") from None
