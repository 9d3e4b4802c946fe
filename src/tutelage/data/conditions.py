"""What is done to a training part on purpose: wrong labels, fewer samples. The test part is never touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.data import Data, class_counts
from tutelage.errors import TutelageError, unknown

Labels = NDArray[np.int64]


class Condition(Protocol):
    """A frozen value that turns a data set into another one and appends what it did to the record."""

    def __call__(self, data: Data) -> Data:
        """The data set under this condition; the one given is left as it was."""
        ...


@dataclass(frozen=True)
class _LabelNoise:
    """Wrong labels in the training part.

    Clean labels are kept for analysis, unlabelled samples stay unlabelled, and a validation part that exists
    already is left clean: to select on labels as noisy as the training ones, hold it out after the noise. The
    same seed always hits the same samples, and a higher rate hits those of a lower one and more.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        rate: object = self.rate
        if not isinstance(rate, (float, int, np.floating)) or not 0 <= rate <= 1:  # as NaN is not
            raise TutelageError(f"a noise rate is a number from 0 to 1, got {self.rate!r}")

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        """What each label becomes if it is hit."""
        raise NotImplementedError(f"{type(self).__name__} must say what a label becomes")

    def __call__(self, data: Data) -> Data:
        """The data set with noisy training labels, and the realised rate and transitions in its record."""
        name = type(self).__name__
        if data.train.labels.ndim != 1:
            raise TutelageError(
                f"{name} needs hard labels, and those of {data.name} are soft, of shape "
                f"{tuple(data.train.labels.shape)}; take their arg-max first"
            )
        if data.num_classes < 2:
            raise TutelageError(f"{name} needs 2 classes or more, and {data.name} has {data.num_classes}")
        before = data.train.labels.cpu().numpy()
        generator = _generator(name, self.seed)
        hit = (generator.random(len(before)) < self.rate) & (before >= 0)
        after = np.where(hit, self._redraw(generator, before, data.num_classes), before)
        labelled = before >= 0
        transitions = np.zeros((data.num_classes, data.num_classes), np.int64)
        np.add.at(transitions, (before[labelled], after[labelled]), 1)
        changed = int((before != after).sum())
        entry = {
            "condition": name,
            "rate": float(self.rate),
            "seed": self.seed,
            "labelled": int(labelled.sum()),
            "changed": changed,
            "realised_rate": changed / max(1, int(labelled.sum())),
            "transition_counts": transitions.tolist(),  # row: the label before this condition; column: after
            "validation": "absent" if data.validation is None else "left clean",
        }
        train = replace(data.train, labels=torch.from_numpy(after).to(data.train.labels.device))
        return replace(data, train=train, record=(*data.record, entry))


@dataclass(frozen=True)
class SymmetricNoise(_LabelNoise):
    """With probability ``rate`` a label becomes one of the *other* C - 1 classes, all equally likely.

    The convention of Co-teaching (Han et al. 2018, arXiv 1804.06872) and of most papers since: about ``rate``
    of the labels are wrong. ``UniformNoise`` is the other convention that is called symmetric noise.
    """

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        return (labels + generator.integers(1, num_classes, len(labels))) % num_classes


@dataclass(frozen=True)
class UniformNoise(_LabelNoise):
    """With probability ``rate`` a label is drawn anew from *all* C classes, its own included.

    The convention of Zhang et al. (2017, arXiv 1611.03530) and of the library of Sarfraz et al. (their
    ``CIFAR10RandomLabels``): about ``rate`` (C - 1) / C of the labels are wrong. ``SymmetricNoise`` is the
    other convention.
    """

    def _redraw(self, generator: np.random.Generator, labels: Labels, num_classes: int) -> Labels:
        return generator.integers(0, num_classes, len(labels))


@dataclass(frozen=True)
class Subset:
    """Only ``per_class`` training samples of each class, drawn at random and kept in their order.

    Soft labels count for their largest class; unlabelled samples are left out. With the same seed a larger
    subset contains the smaller one.
    """

    per_class: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise TutelageError(f"a subset needs 1 sample of each class or more, got {self.per_class}")

    def __call__(self, data: Data) -> Data:
        """The data set with the smaller training part."""
        given = data.train.labels.cpu()
        labels = (given if given.ndim == 1 else given.argmax(1)).numpy()
        counts = class_counts(given, data.num_classes)
        if min(counts) < self.per_class:
            rarest = int(np.argmin(counts))
            raise TutelageError(
                f"the class {data.classes[rarest]!r} of {data.name} has {counts[rarest]} training samples, "
                f"fewer than the {self.per_class} wanted of each; ask for fewer or add samples of it"
            )
        drawn = np.lexsort((_generator("Subset", self.seed).random(len(labels)), labels))
        drawn = drawn[np.count_nonzero(labels < 0) :]  # sorted by class, so those without one come first
        rank = np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = torch.from_numpy(np.sort(drawn[rank < self.per_class]))
        entry = {"condition": "Subset", **asdict(self), "samples_before": len(labels), "samples": len(places)}
        return replace(data, train=data.train.subset(places), record=(*data.record, entry))


def parse_noise(text: str | float, seed: int = 0) -> Condition | None:
    """The noise that a text names: ``0.4`` or ``symmetric:0.4``, ``uniform:0.4``; ``None`` for a rate of 0.

    Raises:
        TutelageError: the convention is unknown, or the rate is not a number from 0 to 1.
    """
    convention, colon, number = str(text).strip().rpartition(":")
    kinds: Mapping[str, Callable[[float, int], Condition]] = {
        "symmetric": SymmetricNoise,
        "uniform": UniformNoise,
    }
    if colon and convention not in kinds:
        raise unknown("noise", convention, kinds)
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise TutelageError(
            f"the noise {str(text)!r} has no rate from 0 to 1; write 0.4, symmetric:0.4 or uniform:0.4, say"
        )
    return kinds[convention if colon else "symmetric"](rate, seed) if rate > 0 else None


def _generator(name: str, seed: int) -> np.random.Generator:
    """A stream of its own for each condition: two with the same seed must not draw the same numbers."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, *name.encode()])
