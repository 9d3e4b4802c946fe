"""The base class of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.errors import TutelageError


@dataclass(frozen=True, slots=True)
class Targets:
    """The form of a split's labels; the base class of each kind of targets."""

    task: ClassVar[str]
    """The name of the task for such data, unless the method names another one."""

    noun: ClassVar[str]
    """Their name in messages."""

    single_label: ClassVar[bool] = False
    """Whether each sample has one class, as label noise and class imbalance require."""

    counted: ClassVar[str] = "samples"
    """What ``counts`` counts, in words."""

    unknown: ClassVar[float | None] = None
    """The value of all numbers of a missing label; ``None`` if no value of a label can mean that it is missing."""

    spatial: ClassVar[bool] = False
    """Whether labels are places in the image, which move with its views."""

    def store(self, labels: object, what: str) -> Tensor:
        """Convert an array or a tensor to the stored form of labels, (N, ...).

        Raises:
            TutelageError: another shape, dtype or range; the text says which is expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define store(labels, what)")

    def check(self, labels: Tensor, what: str, names: Sequence[str]) -> None:
        """Refuse stored labels that do not fit the names of the classes, labels, quantities or symbols.

        Raises:
            TutelageError: with the number of names and the expected number.
        """

    def check_inputs(self, labels: Tensor, shape: tuple[int, ...], what: str) -> None:
        """Refuse stored labels that do not fit inputs of this stored shape (N, ...).

        Raises:
            TutelageError: with both shapes.
        """

    def unlabelled(self, samples: int) -> Tensor:
        """The labels of unlabelled samples.

        Raises:
            TutelageError: the number of labels per sample would be unknown, unless samples have one class.
        """
        raise TutelageError(
            f"{self.noun} cannot be left out, since their number would be unknown; mark each one as unknown: -1, or "
            "NaN for quantities"
        )

    def num_classes(self, labels: Tensor) -> int:
        """How many names these labels need; by default the number of columns."""
        return labels.shape[1]

    def classes(self, labels: Tensor) -> Tensor:
        """The class of each sample, (N,) int64; ``-1`` for none, as for all samples of other kinds of targets."""
        return torch.full((len(labels),), UNLABELLED, device=labels.device)

    def strata(self, labels: Tensor) -> Tensor:
        """The classes (N,) int64 that a held-out split is stratified by; -1 if there are none."""
        return self.classes(labels)

    def groups(self, labels: Tensor) -> Tensor | None:
        """The group of each sample, (N,) int64: a group, such as the frames of a video, is never divided among splits.

        ``None``, the default, if samples are independent.
        """
        return None

    def labelled(self, labels: Tensor) -> Tensor:
        """(N,) bool: which samples have a label."""
        return self.classes(labels) != UNLABELLED

    def transformed(self, labels: Tensor, region: Tensor, size: tuple[int, int]) -> Tensor:
        """The labels (B, ...) of the parts of images that views show; called if ``spatial``.

        Args:
            labels: as they are stored.
            region: (B, 5) int64, the box (top, left, height, width, mirrored) of each image, in pixels; it may reach
                outside of the image.
            size: height and width of the images.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transformed(labels, region, size)")

    def counts(self, labels: Tensor, names: Sequence[str]) -> list[int]:
        """How often a split has each name: by default the number of samples."""
        return [len(labels)] * len(names)
