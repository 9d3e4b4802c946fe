"""Label noise between certain classes: chosen pairs, and the asymmetric noise of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.conditions.condition import Labels, stream
from tutelage.data.conditions.noise import LabelNoise
from tutelage.data.data import Data
from tutelage.errors import TutelageError, unknown

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FLIPS: Mapping[int, int] = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}

# The superclass of each class of CIFAR-100, in the order of the class numbers (alphabetical).
SUPERCLASSES = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


@dataclass(frozen=True)
class MappedNoise(LabelNoise):
    """With probability ``rate`` a label becomes the one class that its class is mistaken for, if there is one."""

    def _flips(self, data: Data) -> Mapping[int, int]:
        """The class that each class is mistaken for; other classes do not change."""
        raise NotImplementedError(f"{type(self).__name__} must define _flips(data)")

    def _relabel(self, data: Data, before: Labels) -> Labels:
        targets = np.arange(data.num_classes)
        for old, new in self._flips(data).items():
            targets[old] = new
        changes = (stream(type(self).__name__, self.seed).random(len(before)) < self.rate) & (before >= 0)
        return np.where(changes, targets[before], before)


@dataclass(frozen=True)
class ClassFlips(MappedNoise):
    """With probability ``rate`` a label of certain classes becomes a certain other class.

    One pair is class-bias noise: a share of one class is labelled as one other class.

    Attributes:
        flips: pairs (class, class that its label becomes), by name or number; each class at most once as the first.
    """

    flips: Sequence[tuple[str | int, str | int]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.flips:
            raise TutelageError("ClassFlips needs pairs of classes, got none; give one, such as (3, 5)")
        object.__setattr__(self, "flips", tuple(map(tuple, self.flips)))

    def _flips(self, data: Data) -> Mapping[int, int]:
        pairs = [(_number(old, data), _number(new, data)) for old, new in self.flips]
        if len({old for old, _ in pairs}) < len(pairs) or any(old == new for old, new in pairs):
            raise TutelageError(
                f"ClassFlips turns each class into one other class, got {self.flips!r}; give each class one pair"
            )
        return dict(pairs)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "flips": [list(pair) for pair in self.flips]}


@dataclass(frozen=True)
class CIFARNoise(MappedNoise):
    """The asymmetric noise of CIFAR-10 and CIFAR-100: ``rate`` of a class becomes a similar class.

    CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat to dog and dog to cat; the other five classes
    stay as they are, so that half of ``rate`` of all labels are wrong (Patrini et al. 2017, arXiv 1609.03683).
    CIFAR-100: each class becomes the next one of the five of its superclass, and the last one the first.
    """

    def _flips(self, data: Data) -> Mapping[int, int]:
        names = tuple(name.lower() for name in data.classes)
        if names == CIFAR10:
            return CIFAR10_FLIPS
        if len(names) == len(SUPERCLASSES) and (names[0], names[-1]) == ("apple", "worm"):
            groups = [[c for c, group in enumerate(SUPERCLASSES) if group == g] for g in range(20)]
            return {old: new for group in groups for old, new in zip(group, group[1:] + group[:1], strict=True)}
        raise TutelageError(
            f"asymmetric noise is defined for the classes of CIFAR-10 and CIFAR-100, and {data.name} has others "
            f"({', '.join(data.classes[:3])}, ...); name the flips, for example flip:0.4:3:5,5:3"
        )


def _number(name: str | int, data: Data) -> int:
    """The number of a class, by name or number.

    Raises:
        TutelageError: there is no such class.
    """
    if str(name) in data.classes:
        return data.classes.index(str(name))
    if str(name).isdecimal() and int(name) < data.num_classes:
        return int(name)
    raise unknown("class", str(name), data.classes)
