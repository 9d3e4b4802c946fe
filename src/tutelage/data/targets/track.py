"""The box of one object in each frame of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_floats
from tutelage.data.targets.base import Targets
from tutelage.errors import TutelageError

COLUMNS = 6
LARGEST_NUMBER = 2**24  # float32 holds all whole numbers up to it


@dataclass(frozen=True, slots=True)
class Track(Targets):
    """One object's box in each frame of videos: (N, 6) float32.

    A row is (video, frame, x, y, w, h): the number of the frame's video, its number in that video, and the box in
    pixels, x and y of the top left corner from 0. The box is NaN where the object is out of sight.
    """

    task: ClassVar[str] = "tracking"
    noun: ClassVar[str] = "a box in each frame"

    def store(self, labels: object, what: str) -> Tensor:
        """(N, 6) numbers to float32."""
        form = "(N, 6) of video, frame, x, y, w and h, the box NaN where the object is out of sight"
        stored = as_floats(labels, what, form, axes=(2,), missing=True)
        if stored.shape[1] != COLUMNS:
            raise TutelageError(f"{what} has {stored.shape[1]} columns; expected {form}")
        numbers = stored[:, :2]
        row = _first(((numbers < 0) | (numbers != numbers.round()) | (numbers >= LARGEST_NUMBER)).any(1))
        if row is not None:
            raise TutelageError(
                f"{what}: row {row} has video {float(numbers[row, 0]):g} and frame "
                f"{float(numbers[row, 1]):g}; both are whole numbers from 0 to {LARGEST_NUMBER - 1}"
            )
        return stored

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Complete boxes of positive size, different frames, and a box in each video."""
        boxes = box_of(labels)
        seen = visible(labels)
        for invalid, problem in (
            (boxes.isnan().any(1) & ~boxes.isnan().all(1), "has NaN in a part of its box; give all of it, or NaN"),
            ((boxes[:, 2:] <= 0).any(1), "has a box without area; width and height must be positive"),
        ):
            if (row := _first(invalid)) is not None:
                raise TutelageError(f"the {what}: frame {_name(labels[row])} {problem}: {boxes[row].tolist()}")
        order = (labels[:, 0].long() * LARGEST_NUMBER + labels[:, 1].long()).sort()
        if (row := _first(order.values[1:] == order.values[:-1])) is not None:
            raise TutelageError(f"the {what} has frame {_name(labels[order.indices[row]])} more than once")
        videos = labels[:, 0].long()
        unseen = torch.isin(videos, videos[seen], invert=True)
        if (row := _first(unseen)) is not None:
            raise TutelageError(f"the {what}: video {int(videos[row])} has no frame with a box; leave it out")

    def num_classes(self, labels: Tensor) -> int:
        """One: the response of a network has one channel."""
        return 1

    def labelled(self, labels: Tensor) -> Tensor:
        """The frames with a box."""
        return visible(labels)

    def groups(self, labels: Tensor) -> Tensor:
        """The videos."""
        return labels[:, 0].long()

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many frames have a box."""
        return [int(visible(labels).sum())]


def box_of(labels: Tensor) -> Tensor:
    """The boxes (x, y, w, h) of labels (..., 6), (..., 4); NaN where the object is out of sight."""
    return labels[..., 2:]


def visible(labels: Tensor) -> Tensor:
    """Whether the object is in sight, of labels (..., 6): (...,) bool."""
    return ~labels[..., 2].isnan()


def _first(invalid: Tensor) -> int | None:
    """The first row for which a condition holds; ``None`` if there is none."""
    return int(invalid.int().argmax()) if bool(invalid.any()) else None


def _name(label: Tensor) -> str:
    return f"{int(label[1])} of video {int(label[0])}"
