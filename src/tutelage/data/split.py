"""A split of a data set: inputs, labels, and their checks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.arrays import as_clean_labels, as_index, as_trusted
from tutelage.data.images import Images, ImageSubset, fingerprint_bytes
from tutelage.data.modality import Modality, Pixels
from tutelage.data.targets import Classes, Targets
from tutelage.data.views import Views
from tutelage.errors import TutelageError
from tutelage.text import value_text


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """A split of a data set.

    Attributes:
        inputs: as they are stored, of images (N, H, W, C) uint8: a tensor, or ``ImageFiles`` that are read
            batch by batch.
        labels: (N,) int64 class numbers, ``-1`` for no label; or (N, C) float32 soft labels; or as ``targets`` says.
        index: (N,) int64, each sample's position in the split it was loaded from, or its number in a published set.
        clean_labels: (N,) int64, the labels before any condition was applied. For analysis, never for training.
        trusted: (N,) bool, samples whose label was verified: label noise does not change them, and a method may rely
            on them. ``None`` if there are none.
        modality: the kind of the inputs.
        targets: the kind of the labels.
    """

    inputs: Tensor | Images
    labels: Tensor
    index: Tensor
    clean_labels: Tensor
    trusted: Tensor | None = None
    modality: Modality = Pixels()  # noqa: RUF009 - a frozen value
    targets: Targets = Classes()  # noqa: RUF009 - a frozen value

    @classmethod
    def of(
        cls,
        inputs: Tensor | Images,
        labels: Tensor,
        modality: Modality = Pixels(),  # noqa: B008 - a frozen value
        targets: Targets = Classes(),  # noqa: B008 - a frozen value
    ) -> Split:
        """A split as it was loaded: indices run from 0 and the labels, or the largest of soft ones, count as clean.

        Raises:
            TutelageError: the labels are not of the kind of ``targets``.
        """
        labels = targets.store(labels, "the array of labels")
        index = torch.arange(len(labels), device=labels.device)
        return cls(inputs, labels, index, targets.classes(labels), modality=modality, targets=targets)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        inputs = f"{self.modality.noun} {tuple(self.inputs.shape)}"
        return f"Split({len(self)} samples, {inputs}, {self.targets.noun} {tuple(self.labels.shape)})"

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are a tensor rather than files."""
        return isinstance(self.inputs, Tensor)

    @property
    def corrupted(self) -> Tensor:
        """(N,) bool: samples whose label differs from the clean one (a missing label does not count)."""
        classes = self.targets.classes(self.labels)
        return (classes != self.clean_labels) & (classes >= 0)

    @property
    def noise_rate(self) -> float:
        """The share of wrong labels among labelled samples; 0 if no sample has a label."""
        return int(self.corrupted.sum()) / max(int(self.targets.labelled(self.labels).sum()), 1)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that two splits share only if they have the same labels and the same images.

        Images that are files count as the same while name, size and time of change of each one are.
        """
        digest = hashlib.sha256(self.labels.cpu().contiguous().numpy().data)
        for content in fingerprint_bytes(self.inputs):
            digest.update(content)
        return digest.hexdigest()[:16]

    def labels_under(self, labels: Tensor, views: Views, view: Tensor, index: Tensor) -> Tensor:
        """The labels (B, ...) of samples under views; they change only if they are places in the image.

        Args:
            labels: of the stored samples.
            views: the augmentation.
            view: the number of each sample's view, (B,) int64.
            index: the number of each sample, (B,) int64.

        Raises:
            TutelageError: labels cannot move with these views.
        """
        if not self.targets.spatial:
            return labels
        size = self.inputs.shape[1], self.inputs.shape[2]
        return self.targets.transformed(labels, views.region(size, view, index), size)

    def subset(self, indices: Tensor) -> Split:
        """The samples at these indices of this split, in this order; their ``index`` is kept."""
        inputs = self.inputs[indices] if isinstance(self.inputs, Tensor) else ImageSubset.of(self.inputs, indices)
        return replace(
            self,
            inputs=inputs,
            labels=self.labels[indices],
            index=self.index[indices],
            clean_labels=self.clean_labels[indices],
            trusted=None if self.trusted is None else self.trusted[indices],
        )


def rejoined(first: Split, second: Split) -> Split:
    """The samples of two parts of one split, those of the first part first; each keeps its ``index``."""
    if isinstance(first.inputs, ImageSubset) and isinstance(second.inputs, ImageSubset):
        rows = torch.cat([first.inputs.indices, second.inputs.indices])
        inputs: Tensor | Images = ImageSubset.of(first.inputs.images, rows)
    else:
        inputs = torch.cat([part.inputs[torch.arange(len(part))] for part in (first, second)])
    labels, index, clean_labels = (
        torch.cat([getattr(part, name) for part in (first, second)]) for name in ("labels", "index", "clean_labels")
    )
    return replace(first, inputs=inputs, labels=labels, index=index, clean_labels=clean_labels, trusted=None)


def split_from_arrays(pair: object, what: str, modality: Modality, targets: Targets) -> Split:
    """A split from a pair of arrays."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TutelageError(f"the {what} is not a pair ({modality.noun}, labels): {value_text(pair)}")
    inputs = modality.store(pair[0], f"the array of {modality.noun} of the {what}")
    labels = targets.unlabelled(len(inputs)) if pair[1] is None else pair[1]
    labels = targets.store(labels, f"the array of labels of the {what}")
    _check_sizes(inputs, labels, what, modality)
    return Split.of(inputs, labels, modality, targets)


def checked(split: object, what: str, classes: Sequence[str]) -> Split:
    """Return the split with all its tensors checked and converted; refuse one that cannot train a network."""
    if not isinstance(split, Split):
        raise TutelageError(
            f"the {what} is a {type(split).__name__}; make splits with Split.of(images, labels), or all of them with "
            "Data.from_arrays((images, labels))"
        )
    modality, targets = split.modality, split.targets
    images, labels = split.inputs, targets.store(split.labels, f"the array of labels of the {what}")
    if len(labels) == 0:
        raise TutelageError(f"the {what} is empty")
    if isinstance(images, Tensor | np.ndarray) or not hasattr(images, "shape"):
        images = modality.store(images, f"the array of {modality.noun} of the {what}")
    else:
        modality.check_files(images, f"the {modality.noun} of the {what}")
    _check_sizes(images, labels, what, modality)
    targets.check(labels, what, classes)
    targets.check_inputs(labels, tuple(images.shape), what)
    samples = len(labels)
    checked: dict[str, Any] = {
        "inputs": images,
        "labels": labels,
        "index": as_index(split.index, samples, f"the index of the {what}"),
        "clean_labels": as_clean_labels(split.clean_labels, samples, len(classes), f"the clean labels of the {what}"),
        "trusted": None if split.trusted is None else as_trusted(split.trusted, samples, f"trusted of the {what}"),
    }
    changes = {name: value for name, value in checked.items() if value is not getattr(split, name)}
    return replace(split, **changes) if changes else split


def _check_sizes(inputs: Tensor | Images, labels: Tensor, what: str, modality: Modality) -> None:
    if inputs.shape[0] != len(labels):
        raise TutelageError(
            f"the {what} needs as many {modality.noun} as labels, got {tuple(inputs.shape)} {modality.noun} "
            f"and {tuple(labels.shape)} labels"
        )
