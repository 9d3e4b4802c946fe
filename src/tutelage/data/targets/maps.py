"""Targets that are saliency maps: where people looked in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_floats
from tutelage.data.batch import UNLABELLED
from tutelage.data.targets.base import Targets
from tutelage.data.views.regions import cut_planes
from tutelage.errors import TutelageError
from tutelage.text import value_text

FORM = "maps (N, H, W) of densities in [0, 1], or (N, 2, H, W) with numbers of fixations, NaN for images without"
DENSITY, FIXATIONS = 0, 1  # the planes of the labels of an image


@dataclass(frozen=True, slots=True)
class Maps(Targets):
    """Where people looked in each image: (N, 2, H, W) float32, of the size of the images.

    The first plane is the density of fixations, scaled to a maximum of 1; the second is how many fixations fell on each
    pixel. A plane is NaN where it is unknown: both of an unlabelled image, the second of an image with a density alone.
    """

    task: ClassVar[str] = "saliency"
    noun: ClassVar[str] = "saliency maps"
    unknown: ClassVar[float | None] = float("nan")
    spatial: ClassVar[bool] = True

    def store(self, labels: object, what: str) -> Tensor:
        """(N, 2, H, W), or densities (N, H, W) alone, to (N, 2, H, W) float32."""
        stored = as_floats(labels, what, FORM, axes=(3, 4), missing=True)
        if stored.ndim == 3:
            stored = torch.stack([stored, torch.full_like(stored, float("nan"))], 1)
        if stored.shape[1] != 2:
            raise TutelageError(f"{what} has shape {tuple(stored.shape)}; expected {FORM}")
        density, fixations = stored.unbind(1)
        for plane, noun in ((density, "the density"), (fixations, "the fixations")):
            unknown = plane.isnan().flatten(1)
            if bool((partly := unknown.any(1) & ~unknown.all(1)).any()):
                raise TutelageError(
                    f"{what}: {noun} of image {_first(partly)} is NaN in some pixels; a plane is NaN as a whole if it "
                    "is unknown"
                )
        _refuse((density < 0) | (density > 1), density, f"{what}: the density", "divide each by its largest value")
        counts = fixations.nan_to_num(0)
        _refuse((counts < 0) | (counts != counts.round()), counts, f"{what}: the number of fixations", "count them")
        for wrong, problem in (
            (density.flatten(1).amax(1) == 0, "is 0 everywhere; mark it as unknown by NaN"),
            (
                self.labelled(stored).logical_not() & fixations[:, 0, 0].isfinite(),
                "is NaN but has fixations; blur them",
            ),
        ):
            if bool(wrong.any()):
                raise TutelageError(f"{what}: the density of image {_first(wrong)} {problem}")
        return stored

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """One name, that of the map."""
        if len(names) != 1:
            raise TutelageError(f"the {what} has one map for each image, but there are {len(names)} names; give one")

    def unlabelled(self, samples: int) -> Tensor:
        """Refused, since the size is unknown."""
        raise TutelageError("saliency maps cannot be left out, since their size is unknown; give maps of NaN (N, H, W)")

    def num_classes(self, labels: Tensor) -> int:
        """One map."""
        return 1

    def strata(self, labels: Tensor) -> Tensor:
        """0 for labelled images: of these, and of the others, the same share is held out."""
        return torch.zeros(len(labels), dtype=torch.int64).where(self.labelled(labels).cpu(), UNLABELLED)

    def labelled(self, labels: Tensor) -> Tensor:
        """Images with a density."""
        return ~labels[:, DENSITY, 0, 0].isnan()

    def transformed(self, labels: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
        """The maps (B, 2, H, W) of parts of the images; outside of an image nobody looked.

        The density is not scaled to a maximum of 1 again. Fixations keep their places to the nearest pixel; a part that
        is enlarged has more of them.
        """
        density = cut_planes(labels[:, :1], region, size, nearest=False, fill=0.0)
        fixations = cut_planes(labels[:, 1:], region, size, nearest=True, fill=0.0)
        moved = torch.cat([density, fixations], 1)
        return moved.masked_fill(labels[:, :, :1, :1].isnan(), float("nan"))

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How many images have a map."""
        return [int(self.labelled(labels).sum())]


def _first(wrong: Tensor) -> int:
    return int(wrong.int().argmax())


def _refuse(wrong: Tensor, values: Tensor, what: str, remedy: str) -> None:
    """Raise with the first wrong value of (N, H, W) and its place."""
    if bool(wrong.any()):
        image, row, column = (int(place) for place in wrong.nonzero()[0])
        raise TutelageError(
            f"{what} of image {image} is {value_text(float(values[image, row, column]))} in row {row}, column "
            f"{column}; {remedy}"
        )
