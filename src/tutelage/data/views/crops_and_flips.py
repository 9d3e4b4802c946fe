"""Crops of padded images, and mirror images: the augmentation of small images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.errors import TutelageError


@dataclass(frozen=True, slots=True)
class CropsAndFlips:
    """Every crop of an image padded by ``pad`` black pixels, and, if ``flip``, its mirror image.

    There are (2 pad + 1)^2 views of an image, twice that with flips: 162 for the CIFAR convention of 4 pixels and
    a flip. View ``v`` of sample ``i`` is always the same image, so ``(i, v)`` can be the key of a cached output.

    Attributes:
        pad: black pixels around the image.
        flip: whether mirror images are among the views.
        limit: use at most so many views, spread over all of them, the unchanged image first, so that fewer teacher
            outputs have to be cached. ``None`` uses all views.
    """

    pad: int = 0
    flip: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise TutelageError(f"padding must be 0 or more pixels, got {self.pad}")
        if self.limit is not None and self.limit < 1:
            raise TutelageError(f"the limit of views must be 1 or more, got {self.limit}")

    @property
    def count(self) -> int:
        """The number of views."""
        return self._all if self.limit is None else min(self.limit, self._all)

    @property
    def identity(self) -> int:
        """The number of the view that leaves the image unchanged."""
        return self._centre if self.limit is None else 0

    @property
    def _all(self) -> int:
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    @property
    def _centre(self) -> int:
        return self.pad * (2 * self.pad + 1) + self.pad

    def limited(self, count: int) -> CropsAndFlips:
        """At most ``count`` views, spread over all of them, the unchanged image first."""
        return replace(self, limit=count)

    def region(self, size: tuple[int, int], view: Tensor, index: Tensor) -> Tensor:
        """The box of each view, of the images' size and up to ``pad`` pixels outside of them: (B, 5) int64."""
        top, left, mirrored = self._corners(view)
        height, width = (torch.full_like(view, extent) for extent in size)
        return torch.stack([top - self.pad, left - self.pad, height, width, mirrored], 1)

    def _corners(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top and left of each crop in the padded image, and whether it is mirrored: (B,) int64 each."""
        side = 2 * self.pad + 1
        view = self._unlimited(view)
        mirrored, position = view.div(side * side, rounding_mode="floor"), view % (side * side)
        return position.div(side, rounding_mode="floor"), position % side, mirrored

    def settings(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def _unlimited(self, view: Tensor) -> Tensor:
        """The numbers among all views: with a limit, steps of about the golden section modulo their number."""
        if self.limit is None:
            return view
        stride = next(n for n in range(round(0.382 * self._all), 2 * self._all) if math.gcd(n, self._all) == 1)
        return (self._centre + view * stride) % self._all

    def __call__(self, stored: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """Apply view ``view[b]`` to image ``b``: (B, H, W, C) uint8 and (B,) int64 to (B, H, W, C) uint8.

        One gather serves the whole batch.
        """
        _, height, width, _ = stored.shape
        top, left, mirrored = self._corners(view)
        rows = top[:, None] + torch.arange(height, device=stored.device)
        columns = torch.arange(width, device=stored.device).expand(len(view), width)
        columns = left[:, None] + torch.where(mirrored[:, None] == 1, width - 1 - columns, columns)
        if self.pad:
            stored = F.pad(stored, (0, 0, self.pad, self.pad, self.pad, self.pad))
        sample = torch.arange(len(stored), device=stored.device)[:, None, None]
        return stored[sample, rows[:, :, None], columns[:, None, :]]
