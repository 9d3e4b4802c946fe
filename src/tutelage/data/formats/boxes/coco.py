"""Annotations in the layouts of COCO: one JSON file for each split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.data.formats.boxes.annotated import AnnotatedImage, Box
from tutelage.data.targets.boxes import CROWD, DIFFICULT, OBJECT
from tutelage.errors import TutelageError
from tutelage.files import read_file
from tutelage.parsing import parse_json
from tutelage.text import value_text

FILES = ("_annotations.coco.json", "annotations.json", "annotations.coco.json", "labels.json")
FOLDER = "annotations"
PREFIX = "instances_"
SPLITS = {"train": ("train",), "validation": ("valid", "val"), "test": ("test",)}


def files_of(folder: Path) -> dict[str, Path]:
    """The file of annotations of each split; empty if the folder has none.

    It is ``annotations/instances_train*.json`` (or ``annotations/train*.json``), or one file in the folder of each
    split. Otherwise the only JSON file of the folder or of ``annotations``, whatever its name, is ``train``.

    Raises:
        TutelageError: a split has several files, or several files have no split.
    """
    by_split: dict[str, Path] = {}
    for split, names in SPLITS.items():
        listed = sorted((folder / FOLDER).glob("*.json"))
        files = [file for file in listed if file.stem.removeprefix(PREFIX).startswith(names)]
        files = [file for file in files if file.stem.startswith(PREFIX)] or files
        files += [folder / name / file for name in names for file in FILES if (folder / name / file).is_file()]
        if len(files) > 1:
            raise TutelageError(f"{files[0]} and {files[1]} are both annotations of the {split} split; keep one")
        if files:
            by_split[split] = files[0]
    if by_split:
        return by_split
    alone = [folder / name for name in FILES if (folder / name).is_file()]
    alone = alone or sorted([*folder.glob("*.json"), *(folder / FOLDER).glob("*.json")])
    if len(alone) > 1:
        raise TutelageError(
            f"{alone[0]} and {alone[1]} may both have annotations; name them {FOLDER}/{PREFIX}train.json, "
            f"{FOLDER}/{PREFIX}test.json, or remove one"
        )
    return {"train": alone[0]} if alone else {}


def read(folder: Path, files: Mapping[str, Path]) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """The images of each split, and the names of the training file's categories in the order of their numbers.

    Args:
        folder: in which images are.
        files: from ``files_of``.

    Raises:
        TutelageError: a file is damaged, an annotation is invalid, or an image is missing.
    """
    splits, names = {}, list[str]()
    for split, file in files.items():
        annotations = _Annotations(file)
        splits[split] = annotations.images(_places(folder, file))
        names = names or annotations.ordered_names
    return splits, names


def _places(folder: Path, file: Path) -> list[Path]:
    """The folders in which the images of a file of annotations may be, in this order."""
    name = file.stem.removeprefix(PREFIX)
    beside = file.parent
    pixels = [place / images for images in ("images", "data") for place in (beside, folder)]
    return [folder / name, folder / "images" / name, beside, *pixels, folder]


def listed_images(file: Path) -> tuple[list[tuple[Path, int | str]], dict[str, int | str]]:
    """The images that a file lists with their ids, and the ids of its categories by name; it needs no annotations.

    Raises:
        TutelageError: the file is damaged, or an image is missing.
    """
    content = _Annotations(file, annotated=False)
    folder = file.parent.parent if file.parent.name == FOLDER else file.parent
    images = content.images(_places(folder, file))
    ids = [row["id"] for row in content.rows]
    return [(image.file, number) for image, number in zip(images, ids, strict=True)], {
        name: number for number, name in content.names.items()
    }


class _Annotations:
    """A file of annotations; of one without ``annotated`` images only the other entries are read."""

    def __init__(self, file: Path, annotated: bool = True) -> None:
        self.file = file
        try:
            content = parse_json(read_file(file, None))
        except ValueError as error:
            raise TutelageError(f"{file} cannot be read: {error}") from error
        content = content if isinstance(content, dict) else {}
        tables: list[Any] = [
            content.get("images"),
            content.get("annotations") if annotated else [],
            content.get("categories"),
        ]
        if not all(isinstance(table, list) and all(isinstance(row, dict) for row in table) for table in tables):
            raise TutelageError(f"{file} is not in COCO's format: it needs lists images, annotations and categories")
        self.rows: list[dict[str, Any]] = tables[0] or []
        self.annotations: list[dict[str, Any]] = tables[1] or []
        self.names = {self._entry(row, "id", "category"): str(row.get("name", "")) for row in tables[2] or []}
        if duplicates := [name for name in self.names.values() if [*self.names.values()].count(name) > 1]:
            raise TutelageError(f"{file} has several categories named {value_text(duplicates[0])}; rename them")

    @property
    def ordered_names(self) -> list[str]:
        """The names of its categories in the order of their numbers."""
        return [self.names[key] for key in sorted(self.names, key=lambda key: (isinstance(key, str), key))]

    def images(self, places: list[Path]) -> list[AnnotatedImage]:
        """Its images, each of which must be in one of these folders."""
        boxes: dict[Any, list[Box]] = {self._entry(row, "id", "image"): [] for row in self.rows}
        if not boxes:
            raise TutelageError(f"{self.file} has no image; add some, or remove it")
        if len(boxes) < len(self.rows):
            raise TutelageError(f"{self.file} has several images of the same id; give each its own")
        for row in self.annotations:
            image = self._entry(row, "image_id", "annotation")
            if image not in boxes:
                raise TutelageError(
                    f"{self.file}: annotation {value_text(row.get('id'))} is of image {value_text(image)}, which it "
                    "does not list; add the image"
                )
            boxes[image].append(self._box(row))
        return [
            AnnotatedImage(self._found(row, places), boxes[row["id"]], self._size(row), str(self.file))
            for row in self.rows
        ]

    def _box(self, row: Mapping[str, Any]) -> Box:
        category, corners = self._entry(row, "category_id", "annotation"), row.get("bbox")
        what = f"{self.file}: annotation {value_text(row.get('id'))}"
        if category not in self.names:
            raise TutelageError(f"{what} has the category {value_text(category)}, which it does not list")
        numbers = [float(n) for n in corners if _is_number(n)] if isinstance(corners, list) else []
        if len(numbers) != 4 or len(numbers) != len(corners or ()):
            raise TutelageError(f"{what} has the bbox {value_text(corners)}; give [x, y, width, height] in pixels")
        x, y, width, height = numbers
        kind = CROWD if row.get("iscrowd") == 1 else DIFFICULT if row.get("ignore") == 1 else OBJECT
        return Box(x, y, x + width, y + height, self.names[category], kind)

    def _found(self, row: Mapping[str, Any], places: list[Path]) -> Path:
        name = row.get("file_name")
        if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise TutelageError(
                f"{self.file}: image {value_text(row['id'])} has the file_name {value_text(name)}; give a path below "
                "the folder of the images"
            )
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is None:
            raise TutelageError(f"{self.file}: there is no image {name} in {', '.join(map(str, places[:4]))}; add it")
        return path

    def _size(self, row: Mapping[str, Any]) -> tuple[int, int] | None:
        height, width = row.get("height"), row.get("width")
        return (height, width) if isinstance(height, int) and isinstance(width, int) and height and width else None

    def _entry(self, row: Mapping[str, Any], name: str, what: str) -> Any:
        value = row.get(name)
        if not isinstance(value, int | str):
            raise TutelageError(f"{self.file}: {what} {value_text(row)} has no {name}; add it")
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
