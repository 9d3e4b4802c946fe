"""What a file of annotations says of an image, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tutelage.data.formats.folder import SUFFIXES
from tutelage.errors import TutelageError


class Box(NamedTuple):
    """One box: its corners in pixels, with (0, 0) the image's corner; the name of its class; its kind."""

    x1: float
    y1: float
    x2: float
    y2: float
    name: str
    kind: int


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image and its boxes.

    Attributes:
        file: the image.
        boxes: of the upright image.
        size: (H, W) that the annotations state; ``None`` if they state none.
        source: where it is annotated, for error messages.
    """

    file: Path
    boxes: Sequence[Box]
    size: tuple[int, int] | None
    source: str


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder by their names without suffix.

    Raises:
        TutelageError: two images differ in nothing but the suffix.
    """
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        if file.stem in files:
            raise TutelageError(
                f"{files[file.stem]} and {file} have the same name for annotations, {file.stem}; rename one"
            )
        files[file.stem] = file
    return files
