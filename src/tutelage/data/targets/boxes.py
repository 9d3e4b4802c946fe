"""Boxes of objects in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_floats
from tutelage.data.batch import UNLABELLED
from tutelage.data.targets.base import Targets
from tutelage.data.views.regions import moved_boxes
from tutelage.errors import TutelageError

OBJECT, DIFFICULT, CROWD = 0, 1, 2
"""The kind of a box: an object; one that is ignored, as VOC's difficult ones; or a group of objects, as COCO's crowds,
which is ignored and can hold any number of detections."""

COLUMNS = 6
LEAST_VISIBLE = 0.25
"""The share of a box's area that a view must show, or else the box is dropped."""

FORM = "boxes (N, M, 5) of (x1, y1, x2, y2, class), or (N, M, 6) with their kind"


@dataclass(frozen=True, slots=True)
class Boxes(Targets):
    """Boxes: (N, M, 6) float32 of (x1, y1, x2, y2, class, kind), in pixels of the stored image.

    The left upper corner of the image is (0, 0) and the right lower one (W, H), so that x2 - x1 is the width. The kind
    is 0 for an object, 1 for a difficult box and 2 for a crowd. Difficult boxes and crowds are ignored: finding them
    counts neither as right nor as wrong, and they are no objects in training. Rows beyond an image's boxes have class
    -1 and zeros; an image with such rows alone has no object.
    """

    task: ClassVar[str] = "detection"
    noun: ClassVar[str] = "boxes"
    counted: ClassVar[str] = "objects"
    spatial: ClassVar[bool] = True

    def store(self, labels: object, what: str) -> Tensor:
        """(N, M, 5) or (N, M, 6) numbers to (N, M, 6) float32."""
        stored = as_floats(labels, what, FORM, axes=(3,), missing=False)
        if stored.shape[2] not in (COLUMNS - 1, COLUMNS):
            raise TutelageError(f"{what} has rows of {stored.shape[2]} numbers; expected {FORM}")
        if stored.shape[2] == COLUMNS - 1:
            stored = torch.cat([stored, torch.zeros_like(stored[..., :1])], 2)
        present = stored[..., 4] != UNLABELLED
        number, kind = stored[..., 4], stored[..., 5]
        _refuse(
            present & ((number < 0) | (number != number.round())), stored, what, "classes are 0 or more, -1 for none"
        )
        _refuse(present & ((kind < 0) | (kind > CROWD) | (kind != kind.round())), stored, what, "kinds are 0, 1 or 2")
        area = (stored[..., 2:4] > stored[..., :2]).all(2)
        _refuse(present & ~area, stored, what, "x2 must be above x1 and y2 above y1")
        padding = stored.new_tensor([0.0, 0.0, 0.0, 0.0, UNLABELLED, OBJECT])
        clean = torch.where(present[..., None], stored, padding)
        return stored if torch.equal(clean, stored) else clean

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Class numbers below ``len(names)``."""
        expected = f"there are {len(names)} classes, 0 to {len(names) - 1}"
        _refuse(labels[..., 4] >= len(names), labels, f"the {what}", expected)

    def unlabelled(self, samples: int) -> Tensor:
        """Refused: an image without boxes is one without objects.

        Raises:
            TutelageError: always.
        """
        raise TutelageError(
            "boxes cannot be left out: give (N, M, 5) numbers, and rows of class -1 for an image without objects"
        )

    def num_classes(self, labels: Tensor) -> int:
        """One more than the largest class."""
        return int(labels[..., 4].max()) + 1 if labels.numel() else 0

    def strata(self, labels: Tensor) -> Tensor:
        """1 for an image with an object, 0 for one without."""
        return self._objects(labels).any(1).long()

    def labelled(self, labels: Tensor) -> Tensor:
        """All: no box means no object."""
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)

    def transformed(self, labels: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes move and are cut at the rim of the view; one that shows less than a quarter of its area is dropped."""
        moved = moved_boxes(labels[..., :4], region, size)
        height, width = size
        cut = torch.stack(
            [moved[..., column].clamp(0, side) for column, side in enumerate((width, height, width, height))], 2
        )
        whole, left = ((b[..., 2:4] - b[..., :2]).prod(2) for b in (moved, cut))
        remains = (left >= LEAST_VISIBLE * whole) & (left > 0) & (labels[..., 4] >= 0)
        rest = torch.stack([labels[..., 4].where(remains, UNLABELLED), labels[..., 5].where(remains, OBJECT)], 2)
        return torch.cat([cut.where(remains[..., None], 0.0), rest], 2)

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many objects of each class there are, without ignored ones."""
        numbers = labels[..., 4][self._objects(labels)].long()
        return torch.bincount(numbers, minlength=len(names)).tolist()

    def _objects(self, labels: Tensor) -> Tensor:
        """(N, M) bool: which rows are objects that count."""
        return (labels[..., 4] >= 0) & (labels[..., 5] == OBJECT)


def _refuse(bad: Tensor, boxes: Tensor, what: str, rule: str) -> None:
    """Raise an error about the first bad box, if any, with its image, its number and its values."""
    if not bool(bad.any()):
        return
    image, row = (int(position) for position in bad.nonzero()[0])
    values = ", ".join(f"{value:g}" for value in boxes[image, row].tolist())
    raise TutelageError(f"{what}: box {row} of image {image} is ({values}) ({int(bad.sum())} such boxes); {rule}")
