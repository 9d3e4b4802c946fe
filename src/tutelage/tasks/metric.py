"""The kinds of numbers that an evaluation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of an evaluation that tables can show.

    Attributes:
        title: its name in words.
        better: which direction is better; ``None`` if neither is, or if it depends only on the condition.
        percent: whether it is in [0, 1] and printed in percent, and its differences in percentage points.
        in_studies: whether the records of a study contain it; ``result.json`` always does.
    """

    title: str
    better: Literal["higher", "lower"] | None
    percent: bool = False
    in_studies: bool = True

    @property
    def short_title(self) -> str:
        """The title without the prefix ``test``."""
        return self.title.removeprefix("test ")

    @property
    def heading(self) -> str:
        """The title at the beginning of a sentence."""
        return self.title[:1].upper() + self.title[1:]

    def text(self, value: float) -> str:
        """A value as text."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class Curve:
    """Several related numbers of an evaluation: stored with a run and plotted, but not in tables.

    Attributes:
        title: its name in words.
    """

    title: str
