"""The summary of runs that failed or are damaged."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.studies.reading import RECORDS
from tutelage.studies.records import FAILURES
from tutelage.studies.results import Results


def failure_summary(results: Results) -> str | None:
    """Return one line with the number of failed and damaged runs and the remedy; ``None`` if all runs are done."""
    # Several tables may share a run.
    unfinished = {run["folder"]: run for run in results.runs if run["status"] != "done"}
    damaged = [folder for folder, run in unfinished.items() if run["status"] == "missing" and run["error"]]
    count = len({run["folder"] for run in results.runs})
    texts = []
    if failed := len(unfinished) - len(damaged):
        texts.append(
            f"{_fraction(failed, count)} of the study failed; their errors are in {results.folder / FAILURES}, and the "
            "same study tries them again"
        )
    if damaged:
        texts.append(
            f"{_fraction(len(damaged), count)} of the study cannot be read, though finished; "
            f"{results.folder / RECORDS} says why; remove "
            f"{_first_names([str(results.folder / folder) for folder in damaged])}, and the same study trains "
            f"{'it' if len(damaged) == 1 else 'them'} again"
        )
    return "; ".join(texts) or None


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fraction(part: int, count: int) -> str:
    return f"all {count} runs" if part == count else f"{part} of {count} runs"
