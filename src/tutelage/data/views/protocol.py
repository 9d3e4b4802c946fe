"""Views: numbered augmentations, whose results can be cached and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from tutelage.data.views.regions import whole_images


class Views(Protocol):
    """The augmentations of a data set, by number: view ``v`` of sample ``i`` is always the same input.

    So a teacher's output for ``(i, v)`` can be cached, and a resumed run has the same inputs.
    """

    @property
    def count(self) -> int:
        """The number of views."""
        ...

    @property
    def identity(self) -> int:
        """The number of the view that leaves the sample unchanged."""
        ...

    def limited(self, count: int) -> Views:
        """At most ``count`` of these views, including the unchanged sample."""
        ...

    def __call__(self, stored: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """Apply view ``view[b]`` to stored sample ``b``: (B, ...) and (B,) int64 to (B, ...).

        Random parameters are derived from the view and from ``index[b]``, the sample's number, (B,) int64.
        """
        ...

    def region(self, size: tuple[int, int], view: Tensor, index: Tensor) -> Tensor:
        """The part of each stored image that a view shows: (B,), (B,) int64 to (B, 5) int64.

        Args:
            size: height and width of the stored images.
            view: numbers of views.
            index: numbers of samples.

        Returns:
            (top, left, height, width, mirrored) in pixels; the part may reach outside of the image.

        Raises:
            TutelageError: no box describes these views.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Settings that identify these views, as plain JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class NoAugmentation:
    """No augmentation: the only view of a sample is the sample itself."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    @property
    def identity(self) -> int:
        """The only one."""
        return 0

    def limited(self, count: int) -> NoAugmentation:
        """The same, since there is one view only."""
        return self

    def __call__(self, stored: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """(B, ...), unchanged."""
        return stored

    def region(self, size: tuple[int, int], view: Tensor, index: Tensor) -> Tensor:
        """The whole image: (B, 5)."""
        return whole_images(size, view)

    def settings(self) -> dict[str, Any]:
        """Its name."""
        return {"views": "as is"}


@runtime_checkable
class CroppingViews(Views, Protocol):
    """Views whose crops can be cut out of whole images, of any size, while these are read."""

    def boxes(self, sizes: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """The box of each image of size (H, W) that a view shows: (B, 2), (B,), (B,) int64 to (B, 5) int64.

        A box is (top, left, height, width, mirrored), in pixels.
        """
        ...

    def after_crop(self, cropped: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """The rest of the augmentation of images that are cut already: (B, H, W, C) uint8 to (B, H, W, C) uint8."""
        ...


@runtime_checkable
class JoiningViews(Views, Protocol):
    """Views that make one input, and its label, of K samples of a split, such as two frames of a video."""

    def members(self, labels: Tensor, rows: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """The samples that each view shows: (...,) int64 each to (..., K) int64, rows of the split.

        Args:
            labels: (N, ...), of the whole split.
            rows: the samples whose views are requested.
            view, index: their views and their numbers.
        """
        ...

    def joined(self, stored: Tensor, labels: Tensor, view: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The arranged inputs (B, ...) and their labels, of stored samples (B, K, ...) and labels (B, K, ...)."""
        ...
