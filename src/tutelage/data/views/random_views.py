"""Numbered random views of photographs: a crop, then changes of the pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from tutelage.data.views.boxes import RandomResizedCrop, centre_boxes, cut_batch, image_sizes
from tutelage.data.views.draws import Draws, per_image
from tutelage.data.views.erasing import RandomErasing
from tutelage.data.views.many_views import ManyViews
from tutelage.data.views.rand_augment import RandAugment
from tutelage.data.views.regions import whole_images
from tutelage.errors import TutelageError


class Step(Protocol):
    """A random change of the pixels of images: a frozen dataclass, whose fields identify it.

    An attribute ``moves = False`` says that pixels stay in their places, so that labels such as masks still fit.
    """

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """(B, H, W, C) uint8 to (B, H, W, C) uint8, with parameters from ``draws``."""
        ...


@dataclass(frozen=True, slots=True)
class RandomViews(ManyViews):
    """Random views by number: view 0 is the image, and in every other view crop and changes are random.

    The random numbers of view ``v`` of sample ``i`` are a hash of ``v``, ``i`` and the place of the step, so that the
    view is always the same image: runs replay, teacher outputs can be cached, and another step does not change the
    crops.

    Attributes:
        crop: the random crop; ``None`` for none.
        steps: changes of the pixels, in order: ``ColourJitter``, ``RandAugment``, ``RandomErasing``, or your own.
    """

    crop: RandomResizedCrop | None = RandomResizedCrop()  # noqa: RUF009 - a frozen value
    steps: tuple[Step, ...] = ()

    def region(self, size: tuple[int, int], view: Tensor, index: Tensor) -> Tensor:
        """The crops of images of this size, and in view 0 the whole image: (B, 5) int64.

        Raises:
            TutelageError: a step moves pixels.
        """
        moving = next((type(step).__name__ for step in self.steps if getattr(step, "moves", True)), None)
        if moving is not None:
            raise TutelageError(
                f"{moving} moves pixels, and labels that are places in the image cannot follow; use --augment standard "
                "or crop"
            )
        whole = whole_images(size, view)
        if self.crop is None:
            return whole
        boxes = self.crop.boxes(whole[:, 2:4], Draws.of(view, index, 0))
        return torch.where((view == self.identity)[:, None], whole, boxes)

    def settings(self) -> dict[str, Any]:
        """The name and the fields."""
        return {
            "views": "random",
            "crop": None if self.crop is None else _plain(self.crop),
            "steps": [{"step": type(step).__name__, **_plain(step)} for step in self.steps],
            "limit": self.limit,
        }

    def __call__(self, stored: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """Apply view ``view[b]`` to image ``b``: (B, H, W, C) uint8 and (B,) int64 to (B, H, W, C) uint8."""
        index = torch.zeros_like(view) if index is None else index
        if self.crop is None:
            return self.after_crop(stored, view, index)
        cropped = cut_batch(stored, self.crop.boxes(image_sizes(stored), Draws.of(view, index, 0)))
        return self.after_crop(self._unless_identity(view, cropped, stored), view, index)

    def boxes(self, sizes: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """The boxes (B, 5) of whole images of sizes (H, W), (B, 2); in view 0 that of the evaluation."""
        centre = centre_boxes(sizes)
        if self.crop is None:
            return centre
        return torch.where((view == self.identity)[:, None], centre, self.crop.boxes(sizes, Draws.of(view, index, 0)))

    def after_crop(self, cropped: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """The steps: (B, H, W, C) uint8 to (B, H, W, C) uint8."""
        changed = cropped
        for number, step in enumerate(self.steps):
            changed = step(changed, Draws.of(view, index, number + 1))
        return self._unless_identity(view, changed, cropped) if self.steps else cropped

    def _unless_identity(self, view: Tensor, changed: Tensor, images: Tensor) -> Tensor:
        return torch.where(per_image(view == self.identity), images, changed)


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values."""
    return {name: list(field) if isinstance(field, tuple) else field for name, field in asdict(value).items()}


def standard(channels: int) -> RandomViews:
    """Random resized crops, and mirror images of coloured ones."""
    return RandomViews(RandomResizedCrop(flip=0.5 if channels == 3 else 0.0))


def strong(channels: int) -> RandomViews:
    """``standard`` with RandAugment and random erasing."""
    return replace(standard(channels), steps=(RandAugment(), RandomErasing()))
