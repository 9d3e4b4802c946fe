"""The records of a study as a pandas data frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tutelage.errors import TutelageError
from tutelage.studies import TEACHER
from tutelage.studies.reading import Record, cell_key

if TYPE_CHECKING:
    import pandas as pd

_NO_CHANGE = MappingProxyType({"noise": "0.0", "imbalance": "none", "per_class": "all"})
"""The values in the frame for conditions that leave the data unchanged."""


def frame_of(runs: Sequence[Record], metrics: Iterable[str]) -> pd.DataFrame:
    """See ``Results.frame``; ``metrics`` names the numeric columns."""
    try:
        import pandas as pd
    except ImportError as error:
        raise TutelageError("a frame needs pandas; pip install 'tutelage[frame]'") from error
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        (condition, (teacher, student), method), seed = cell_key(run), run["seed"]
        networks = (teacher, "") if method == TEACHER else (teacher, student)
        line = {**run, "student": networks[1], "pair": " → ".join(filter(None, networks))}
        line |= {axis: value for axis, value in _NO_CHANGE.items() if run[axis] is None}
        lines.setdefault((condition, networks, method, seed), line)
    frame = pd.DataFrame(list(lines.values())).astype(dict.fromkeys(metrics, "float64"))
    if not any(_names_noise(value) for value in frame["noise"]):
        frame["noise"] = frame["noise"].astype("float64")
    if (frame["per_class"] == _NO_CHANGE["per_class"]).any():
        frame["per_class"] = frame["per_class"].astype("str")
    return frame


def _names_noise(value: str) -> bool:
    """Whether a noise is more than a rate."""
    try:
        float(value)
    except ValueError:
        return True
    return False
