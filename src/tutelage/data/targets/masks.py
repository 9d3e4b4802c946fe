"""Targets: a class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_masks
from tutelage.data.batch import UNLABELLED
from tutelage.data.targets.base import Targets
from tutelage.data.views.regions import cut_planes
from tutelage.errors import TutelageError


@dataclass(frozen=True, slots=True)
class Masks(Targets):
    """A class for each pixel: (N, H, W) int16 class numbers of 0 to 254, ``-1`` for void pixels, which are ignored.

    An image whose pixels are all void has no label. Masks have the size of their images and move with the views; what a
    view shows beyond the image is void.
    """

    task: ClassVar[str] = "segmentation"
    noun: ClassVar[str] = "masks"
    unknown: ClassVar[float | None] = UNLABELLED
    counted: ClassVar[str] = "pixels"
    spatial: ClassVar[bool] = True

    def store(self, labels: object, what: str) -> Tensor:
        """(N, H, W) integers or booleans to int16; 255 becomes -1."""
        return as_masks(labels, what)

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Class numbers below ``len(names)``."""
        highest = labels.flatten(1).amax(1)
        if len(wrong := (highest >= len(names)).nonzero()):
            sample = int(wrong[0])
            raise TutelageError(
                f"the {what} has pixels of class {int(highest[sample])} in mask {sample}, but there are {len(names)} "
                f"classes, 0 to {len(names) - 1}; name more classes, or mark such pixels as void, -1 or 255"
            )

    def check_inputs(self, labels: Tensor, shape: tuple[int, ...], what: str) -> None:
        """Masks of the size of the images."""
        if len(shape) != 4 or tuple(labels.shape[1:]) != shape[1:3]:
            raise TutelageError(
                f"the {what} has masks of {labels.shape[1]}x{labels.shape[2]} (H x W) for inputs of shape {shape}; "
                "give each image a mask of its size"
            )

    def num_classes(self, labels: Tensor) -> int:
        """One more than the largest class number."""
        return int(labels.max()) + 1 if labels.numel() else 0

    def strata(self, labels: Tensor) -> Tensor:
        """0 for images with a labelled pixel, -1 for others."""
        return self.labelled(labels).long() - 1

    def labelled(self, labels: Tensor) -> Tensor:
        """Images with at least one pixel that is not void."""
        return (labels != UNLABELLED).flatten(1).any(1)

    def transformed(self, labels: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H, W) int64, the class of the nearest pixel; void outside of the image."""
        planes = cut_planes(labels[:, None].float(), region, size, nearest=True, fill=UNLABELLED)
        return planes[:, 0].long()

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many pixels each class has."""
        counts = torch.zeros(len(names), dtype=torch.int64)
        for some in torch.split(labels, 1024):  # counted as int64, which needs four times the memory
            classes = some[some != UNLABELLED].long()
            counts += torch.bincount(classes, minlength=len(names)).cpu()
        return counts.tolist()
