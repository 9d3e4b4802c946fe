"""What to say of a study's runs that have no numbers."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.studies.reading import RECORDS
from tutelage.studies.records import FAILURES
from tutelage.studies.results import Results


def failure_summary(results: Results) -> str | None:
    """How many runs failed or are damaged, and what to do about them, in one line; ``None`` if all are done."""
    lost = {run["folder"]: run for run in results.runs if run["status"] != "done"}  # rows of several tables may share
    damaged = [folder for folder, run in lost.items() if run["status"] == "missing" and run["error"]]
    count = len({run["folder"] for run in results.runs})
    texts = []
    if failed := len(lost) - len(damaged):
        texts.append(
            f"{_of(failed, count)} of the study failed; their errors are in {results.folder / FAILURES}, and the same "
            "study tries them again"
        )
    if damaged:
        texts.append(
            f"{_of(len(damaged), count)} of the study cannot be read, though finished; {results.folder / RECORDS} says "
            f"why; remove {_some([str(results.folder / folder) for folder in damaged])}, and the same study trains "
            f"{'it' if len(damaged) == 1 else 'them'} again"
        )
    return "; ".join(texts) or None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of(some: int, count: int) -> str:
    return f"all {count} runs" if some == count else f"{some} of {count} runs"
