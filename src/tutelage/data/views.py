"""Numbered augmentations: each can be named, stored and replayed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import TutelageError


class Views(Protocol):
    """The augmentations of a data set, by number: view ``v`` of sample ``i`` is always the same input.

    So a teacher's output for ``(i, v)`` can be stored, and an interrupted run replays the same inputs.
    """

    @property
    def count(self) -> int:
        """How many views there are."""
        ...

    @property
    def identity(self) -> int:
        """The number of the view that is the sample itself."""
        ...

    def limited(self, count: int) -> Views:
        """At most so many of these views, the sample itself among them."""
        ...

    def __call__(self, stored: Tensor, view: Tensor) -> Tensor:
        """Apply view ``view[b]`` to stored sample ``b``: (B, ...) and (B,) int64 to (B, ...), stored samples too."""
        ...

    def shift_and_flip(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Where a point goes: (B, 2) pixels to the right and down, and (B,) bool, whether it is mirrored first."""
        ...

    def settings(self) -> dict[str, Any]:
        """What tells these views from others, as plain JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class NoAugmentation:
    """No augmentation: the only view of a sample is the sample."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    @property
    def identity(self) -> int:
        """The only one."""
        return 0

    def limited(self, count: int) -> NoAugmentation:
        """One view cannot be limited further."""
        return self

    def __call__(self, stored: Tensor, view: Tensor) -> Tensor:
        """(B, ...) as it is."""
        return stored

    def shift_and_flip(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing moves."""
        return torch.zeros(len(view), 2, device=view.device), torch.zeros_like(view, dtype=torch.bool)

    def settings(self) -> dict[str, Any]:
        """Its name."""
        return {"views": "as is"}


@dataclass(frozen=True, slots=True)
class CropsAndFlips:
    """Every crop of an image padded by ``pad`` black pixels, and, if ``flip``, its mirror image.

    There are (2 pad + 1)^2 views of an image, twice that with flips: 162 for the CIFAR convention of 4 pixels and
    a flip. View ``v`` of sample ``i`` is always the same image, so ``(i, v)`` can key a teacher's stored answer.

    Attributes:
        pad: black pixels around the image.
        flip: whether mirror images are among the views.
        limit: use so many of the views and no more, spread over all of them, the image itself first: another
            augmentation, with fewer answers to store. ``None`` is all.
    """

    pad: int = 0
    flip: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise TutelageError(f"padding must be 0 or more pixels, got {self.pad}")
        if self.limit is not None and self.limit < 1:
            raise TutelageError(f"at least one view of an image is needed, got a limit of {self.limit}")

    @property
    def count(self) -> int:
        """How many views there are."""
        return self._all if self.limit is None else min(self.limit, self._all)

    @property
    def identity(self) -> int:
        """The number of the view that is the image itself."""
        return self._centre if self.limit is None else 0

    @property
    def _all(self) -> int:
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    @property
    def _centre(self) -> int:
        return self.pad * (2 * self.pad + 1) + self.pad

    def limited(self, count: int) -> CropsAndFlips:
        """At most so many, spread over all of them, the image itself first."""
        return replace(self, limit=count)

    def shift_and_flip(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Where a point goes: (B, 2) pixels to the right and down, and (B,) bool, whether it is mirrored first."""
        side = 2 * self.pad + 1
        view = self._number(view)
        mirrored, place = view.div(side * side, rounding_mode="floor"), view % (side * side)
        return self.pad - torch.stack([place % side, place.div(side, rounding_mode="floor")], 1), mirrored == 1

    def settings(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)

    def _number(self, view: Tensor) -> Tensor:
        """Which of all the views these are: with a limit, steps of the golden section around all of them."""
        if self.limit is None:
            return view
        pace = next(n for n in range(round(0.382 * self._all), 2 * self._all) if math.gcd(n, self._all) == 1)
        return (self._centre + view * pace) % self._all

    def __call__(self, stored: Tensor, view: Tensor) -> Tensor:
        """Apply view ``view[b]`` to image ``b``: (B, H, W, C) uint8 and (B,) int64 to (B, H, W, C) uint8.

        One gather serves the whole batch.
        """
        _, height, width, _ = stored.shape
        side = 2 * self.pad + 1
        view = self._number(view)
        mirrored, place = view.div(side * side, rounding_mode="floor"), view % (side * side)
        top, left = place.div(side, rounding_mode="floor"), place % side
        rows = top[:, None] + torch.arange(height, device=stored.device)
        columns = torch.arange(width, device=stored.device).expand(len(view), width)
        columns = left[:, None] + torch.where(mirrored[:, None] == 1, width - 1 - columns, columns)
        if self.pad:
            stored = F.pad(stored, (0, 0, self.pad, self.pad, self.pad, self.pad))
        sample = torch.arange(len(stored), device=stored.device)[:, None, None]
        return stored[sample, rows[:, :, None], columns[:, None, :]]
