"""Label noise of one class that is mistaken for one other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.data.conditions.condition import Labels, stream
from tutelage.data.conditions.noise import LabelNoise
from tutelage.data.data import Data
from tutelage.errors import TutelageError, unknown


@dataclass(frozen=True, kw_only=True)
class ClassBias(LabelNoise):
    """With probability ``rate`` a label ``source`` becomes ``target``; other labels do not change.

    The biased labels of iterative label improvement (Haase-Schütz et al. 2020, arXiv 2002.02705).

    Attributes:
        source, target: names of classes.
    """

    source: str
    target: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == self.target:
            raise TutelageError(f"the class {self.source!r} cannot be mistaken for itself; name two classes")

    def _relabel(self, data: Data, before: Labels) -> Labels:
        for name in (self.source, self.target):
            if name not in data.classes:
                raise unknown("class", name, data.classes, f"These are the classes of {data.name}.")
        source, target = data.classes.index(self.source), data.classes.index(self.target)
        draws = stream(type(self).__name__, self.seed).random(len(before))
        return np.where((draws < self.rate) & (before == source), target, before)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "source": self.source, "target": self.target}
