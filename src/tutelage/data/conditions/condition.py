"""The protocol of conditions, and their shared random numbers and class counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.data import Data
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError

Labels = NDArray[np.int64]


class Condition(Protocol):
    """A frozen value that turns a data set into another one and appends what it did to the record."""

    def __call__(self, data: Data) -> Data:
        """The data set under this condition; ``data`` itself does not change."""
        ...


@dataclass(frozen=True)
class Relabelling:
    """A condition that changes labels of the training split.

    Clean labels are kept for analysis, and a validation split that exists already is left clean: to select on
    labels as noisy as the training ones, hold it out after the noise.
    """

    def _relabel(self, data: Data, before: Labels) -> Labels:
        """The labels (N,) after this condition; must not write to ``before``."""
        raise NotImplementedError(f"{type(self).__name__} must define _relabel(data, before)")

    def _settings(self) -> dict[str, Any]:
        """The settings for the record, as plain JSON values."""
        return asdict(self)

    def __call__(self, data: Data) -> Data:
        """The data set with these training labels, and the realised rate and transitions in its record."""
        name = type(self).__name__
        check_single_label(data, name)
        if data.train.labels.ndim != 1:
            raise TutelageError(
                f"{name} needs hard labels, and those of {data.name} are soft, of shape "
                f"{tuple(data.train.labels.shape)}; take their arg-max first"
            )
        if data.num_classes < 2:
            raise TutelageError(f"{name} needs 2 classes or more, and {data.name} has {data.num_classes}")
        before = data.train.labels.cpu().numpy()
        after = self._relabel(data, before)
        absent_classes = np.setdiff1d(np.arange(data.num_classes), before)
        if (invalid := np.intersect1d(after, absent_classes)).size:
            raise TutelageError(
                f"{name} would give training samples the class {data.classes[invalid[0]]!r}, of which {data.name} has "
                "no training sample; leave the noise out, or add samples"
            )
        if data.train.trusted is not None:
            after = np.where(data.train.trusted.cpu().numpy(), before, after)
        labelled, both = before >= 0, (before >= 0) & (after >= 0)
        transitions = np.zeros((data.num_classes, data.num_classes), np.int64)
        np.add.at(transitions, (before[both], after[both]), 1)
        changed = int((labelled & (before != after)).sum())
        entry = {
            "condition": name,
            **self._settings(),
            "labelled": int(labelled.sum()),  # before this condition; the next two are of these
            "changed": changed,
            "realised_rate": changed / max(1, int(labelled.sum())),
            "transition_counts": transitions.tolist(),  # row: the label before this condition; column: after
            "validation": "absent" if data.validation is None else "left clean",
        }
        train = replace(data.train, labels=torch.from_numpy(after).to(data.train.labels.device))
        return replace(data, train=train, record=(*data.record, entry))


def stream(name: str, seed: int) -> np.random.Generator:
    """A random generator for each condition, so that two conditions with the same seed draw different numbers."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *name.encode()])


def check_single_label(data: Data, condition: str) -> None:
    """Refuse targets other than classes.

    Raises:
        TutelageError: with the kind of targets.
    """
    if not data.targets.single_label:
        raise TutelageError(
            f"{condition} is for data with one class for each sample, and {data.name} has {data.targets.noun} for "
            "labels; leave it out"
        )


def clean_classes(data: Data, condition: str) -> tuple[Labels, list[int]]:
    """The class (N,) of each training sample for selecting samples, and the size of each class.

    It is the clean class if known and the label otherwise, so that the selection does not depend on whether noise was
    applied first. Soft labels count for their largest class. A sample without a label has -1.

    Raises:
        TutelageError: the targets are not classes, or no sample has a label.
    """
    check_single_label(data, condition)
    labels, clean = data.targets.classes(data.train.labels).cpu(), data.train.clean_labels.cpu()
    classes = torch.where((labels >= 0) & (clean >= 0), clean, labels)
    if not bool((classes >= 0).any()):
        raise TutelageError(
            f"{condition} chooses samples by their classes, and no training sample of {data.name} has a label; "
            "leave it out"
        )
    return classes.numpy(), class_counts(classes, data.num_classes)
