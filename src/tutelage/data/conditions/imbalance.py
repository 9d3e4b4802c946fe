"""Class imbalance: formulas for the number of training samples of each class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Self

import numpy as np
import torch

from tutelage.data.conditions.condition import clean_classes
from tutelage.data.data import Data
from tutelage.errors import TutelageError

SLACK = 1e-9  # relative, so that rounding errors do not reduce a whole number by one


@dataclass(frozen=True)
class Imbalance:
    """Keep the *first* n_c training samples of each class c, in their order.

    The selection is not random. Classes are counted from 1 in the order of the class numbers. They are the clean
    classes, so that label noise does not change the selection. Soft labels count as their largest class; unlabelled
    samples are left out. The test split and an existing validation split are not changed.
    """

    def _sizes(self, classes: int, most: int) -> list[int]:
        """n_1 .. n_C; ``most`` is the size of the smallest class."""
        raise NotImplementedError(f"{type(self).__name__} must define _sizes(classes, most)")

    def _with_defaults(self, most: int) -> Self:
        """The same condition with its defaults filled in."""
        return self

    def __call__(self, data: Data) -> Data:
        """Return the data set with the smaller training split; the record has the size of each class."""
        name = type(self).__name__
        labels, counts = clean_classes(data, name)
        if data.num_classes < 2:
            raise TutelageError(f"{name} needs 2 classes or more, and {data.name} has {data.num_classes}")
        law = self._with_defaults(min(counts))
        sizes = law._sizes(data.num_classes, min(counts))
        for c, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            if max(size, 1) > count:
                raise TutelageError(
                    f"the class {data.classes[c]!r} of {data.name} has {count} training samples, fewer than the "
                    f"{max(size, 1)} that {name} needs; request fewer or add samples of this class"
                )
        per_class = [np.flatnonzero(labels == c)[:size] for c, size in enumerate(sizes)]
        indices = torch.from_numpy(np.sort(np.concatenate(per_class)))
        entry = {
            "condition": name,
            **asdict(law),
            "samples_before": len(labels),
            "samples": len(indices),
            "class_counts": [len(samples) for samples in per_class],
        }
        return replace(data, train=data.train.subset(indices), record=(*data.record, entry))


@dataclass(frozen=True)
class PowerLawImbalance(Imbalance):
    """n_c = round(a / (b + c^gamma)) with n_1 = n_max and n_C = n_min; a smaller gamma is harder.

    With b = (n_min C^gamma - n_max) / (n_max - n_min) and a = n_max (1 + b). Follows the code of Sarfraz et al. (in
    InBiaseD and DoGo), which follows Hendrycks, Lee and Mazeika (2019, arXiv 1901.09960 [from memory]) and has
    C = 10, n_max = 5000 and n_min = 250. Computed in an equivalent form that does not overflow.

    Attributes:
        gamma: above 0. With a smaller gamma sizes fall faster after the first class; with a larger one more classes
            keep nearly n_max.
        n_max: samples of the first class; by default the size of the smallest class, for example 5000 on CIFAR-10.
        n_min: samples of the last class; by default a twentieth of n_max, at least 1.
    """

    gamma: float
    n_max: int | None = None
    n_min: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.gamma) or not 0 < self.gamma < math.inf:  # refuses NaN too
            raise TutelageError(f"the gamma of a power law is a number above 0, got {self.gamma!r}; 0.2 to 2 are usual")
        if self.n_min is not None and self.n_min < 1:
            raise TutelageError(f"n_min is 1 sample or more, got {self.n_min}; every class needs a training sample")
        if self.n_max is not None and self.n_max <= (self.n_min or 1):
            raise TutelageError(
                f"n_max is larger than n_min, got n_max {self.n_max} and n_min {self.n_min or 1}; use Subset for "
                "classes of one size"
            )

    def _ends(self, most: int) -> tuple[int, int]:
        n_max = self.n_max if self.n_max is not None else most
        n_min = self.n_min if self.n_min is not None else max(1, round(n_max / 20))
        if n_max <= n_min:
            raise TutelageError(
                f"the smallest class has {most} training samples, and n_max {n_max} must be more than n_min {n_min}; "
                "give n_max and n_min, or add samples"
            )
        return n_max, n_min

    def _with_defaults(self, most: int) -> Self:
        n_max, n_min = self._ends(most)
        return replace(self, n_max=n_max, n_min=n_min)

    def _sizes(self, classes: int, most: int) -> list[int]:
        """a / (b + c^g) = n_max / (1 + (n_max / n_min - 1) s_c) with s_c = (c^g - 1) / (C^g - 1), from 0 to 1."""
        n_max, n_min = self._ends(most)
        c = np.arange(1, classes + 1)
        g = float(self.gamma)
        share = (c / classes) ** g * np.expm1(-g * np.log(c)) / np.expm1(-g * np.log(classes))
        sizes: list[int] = np.rint(n_max / (1 + (n_max / n_min - 1) * share)).astype(int).tolist()
        return sizes


@dataclass(frozen=True)
class LongTail(Imbalance):
    """n_c = n_max factor^((c - 1) / (C - 1)), rounded down, at least 1: from n_max to ``factor`` times that.

    The exponential long tail of Cui et al. (2019, arXiv 1901.05555) and of LDAM (Cao et al. 2019, arXiv 1906.07413),
    whose imbalance ratio of 100 is a factor of 0.01. n_max is the size of the smallest class. Deviation: their code
    samples from each class at random, whereas this takes its first samples.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def _sizes(self, classes: int, most: int) -> list[int]:
        return [_share(most, self.factor ** (c / (classes - 1))) for c in range(classes)]


@dataclass(frozen=True)
class StepImbalance(Imbalance):
    """The last round(share C) classes keep ``factor`` n_max samples, rounded down, at least 1; the others n_max.

    The step imbalance of Buda et al. (2018, arXiv 1710.05381 [from memory]) and LDAM (Cao et al. 2019, arXiv
    1906.07413), whose share is 0.5. n_max is the size of the smallest class. Deviation: the same as for ``LongTail``.

    Attributes:
        rare_share: the share of the classes that are rare, between 0 and 1.
        factor: the size of a rare class divided by that of another class.
    """

    rare_share: float
    factor: float

    def __post_init__(self) -> None:
        if not _is_number(self.rare_share) or not 0 < self.rare_share < 1:
            raise TutelageError(
                f"the share of rare classes must be between 0 and 1, got {self.rare_share!r}; 0.5 is usual"
            )
        _check_factor(self.factor)

    def _sizes(self, classes: int, most: int) -> list[int]:
        rare = round(self.rare_share * classes)
        if not 0 < rare < classes:
            raise TutelageError(
                f"a share of {self.rare_share} of {classes} classes makes {rare} of them rare; "
                f"choose one from {1 / classes:.3g} to {1 - 1 / classes:.3g}"
            )
        return [most] * (classes - rare) + [_share(most, self.factor)] * rare


def _is_number(value: object) -> bool:
    return isinstance(value, (float, int))


def _check_factor(factor: float) -> None:
    if not _is_number(factor) or not 0 < factor <= 1:
        raise TutelageError(
            f"an imbalance factor is the size of the rarest class divided by the largest, above 0 and at most 1, "
            f"got {factor!r}; 0.01 is usual"
        )


def _share(most: int, factor: float) -> int:
    return max(1, math.floor(most * factor * (1 + SLACK)))
