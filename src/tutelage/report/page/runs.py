"""Runs without a result, and the trials of tuning."""

from __future__ import annotations

import math
from typing import Any

from tutelage.report.page.values import counted, format_number, place_text, settings_text
from tutelage.studies.reading import Record
from tutelage.studies.results import Results
from tutelage.tasks import Metric


def failed(results: Results) -> list[tuple[Record, str]]:
    """The runs that failed or are missing, with their condition and pair in words."""
    return [(run, place_text(results, run)) for run in results.runs if run["status"] != "done"]


def trials(results: Results) -> dict[str, Any]:
    """The search space, the trials and their scores, and the selected trial of each method; empty without tuning."""
    if not results.trials:
        return {}
    groups: dict[tuple[str, str], list[Record]] = {}
    for trial in results.trials:
        groups.setdefault((place_text(results, trial), trial["method"]), []).append(trial)
    main = results.metrics[results.task.main_metric]
    several = len({place for place, _ in groups}) > 1
    sign = -1 if results.task.lower_is_better else 1

    def rank(trial: Record) -> float:
        return -math.inf if trial["score"] is None else sign * float(trial["score"])

    return {
        "head": f"held-out {main.short_title}{', %' if main.percent else ''}",
        "groups": [
            {
                "title": f"{method}, {place}" if several else method,
                "count": counted(len(group), "trial"),
                "searched": "; ".join(f"{name} {space}" for name, space in group[0]["space"].items()),
                "trials": [_trial(trial, main) for trial in sorted(group, key=rank, reverse=True)],
            }
            for (place, method), group in groups.items()
        ],
    }


def _trial(trial: Record, metric: Metric) -> dict[str, Any]:
    return {
        "chosen": bool(trial.get("chosen")),
        "score": None if trial["score"] is None else format_number(trial["score"], metric),
        "status": trial["status"],
        "seed": trial["seed"],
        "settings": settings_text(trial["settings"]),
        "error": trial["error"],
    }
