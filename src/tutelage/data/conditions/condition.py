"""What conditions share: their form, their random numbers, and how they count."""

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
        """The data set under this condition; the one given is left as it was."""
        ...


@dataclass(frozen=True)
class Relabelling:
    """Other labels for the training split.

    Clean labels are kept for analysis, and a validation split that exists already is left clean: to select on
    labels as noisy as the training ones, hold it out after the noise.
    """

    def _relabel(self, data: Data, before: Labels) -> Labels:
        """The labels (N,) after this condition; those given are not to be written to."""
        raise NotImplementedError(f"{type(self).__name__} must say what a label becomes")

    def _settings(self) -> dict[str, Any]:
        """What the record says this condition was told, as plain JSON values."""
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
        untaught = np.setdiff1d(np.arange(data.num_classes), before)
        if (strange := np.intersect1d(after, untaught)).size:
            raise TutelageError(
                f"{name} would give training samples the class {data.classes[strange[0]]!r}, of which {data.name} has "
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
    """Random numbers of its own for each condition: two with the same seed must not draw the same ones."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *name.encode()])


def check_single_label(data: Data, condition: str) -> None:
    """Refuse targets that are no classes, for a condition on classes.

    Raises:
        TutelageError: with the kind of targets.
    """
    if not data.targets.single_label:
        raise TutelageError(
            f"{condition} is for data with one class for each sample, and {data.name} has {data.targets.noun} for "
            "labels; leave it out"
        )


def clean_classes(data: Data, condition: str) -> tuple[Labels, list[int]]:
    """The class that each training sample counts for where samples are chosen, (N,), and the size of each class.

    It is the clean class where that is known and the given one elsewhere, so that which samples are kept does not
    depend on whether noise came first. Soft labels count for their largest class. A sample without a label is -1.

    Raises:
        TutelageError: the targets are no classes, or no sample has a label.
    """
    check_single_label(data, condition)
    given, clean = data.targets.classes(data.train.labels).cpu(), data.train.clean_labels.cpu()
    classes = torch.where((given >= 0) & (clean >= 0), clean, given)
    if not bool((classes >= 0).any()):
        raise TutelageError(
            f"{condition} chooses samples by their classes, and no training sample of {data.name} has a label; "
            "leave it out"
        )
    return classes.numpy(), class_counts(classes, data.num_classes)
