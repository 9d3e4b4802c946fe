"""The head of the page: the question, the counts of runs, and the setup of the study."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from tutelage.files import read_file
from tutelage.parsing import parse_json
from tutelage.report.page.values import conditions_and_pairs, counted, distinct, settings_text, value_text
from tutelage.studies import PLAIN
from tutelage.studies.reading import STUDY
from tutelage.studies.results import Results, describe_condition
from tutelage.text import printable


def question(results: Results) -> str:
    """The study as a question."""
    methods = [name for name in results.study["methods"] if name != PLAIN]
    conditions, pairs = conditions_and_pairs(results)
    text = f"Does {methods[0]} help" if len(methods) == 1 else f"Which of {len(methods)} methods help"
    text = f"{text} over plain training" if methods else "How well does plain training do"
    axes = [counted(len(conditions), "condition")] if len(conditions) > 1 else []
    axes += [counted(len(pairs), "pair") + " of networks"] if len(pairs) > 1 else []
    data = ", ".join(distinct(str(condition[0]) for condition in conditions))
    return f"{text} on {data}{', under ' + ' and '.join(axes) if axes else ''}?"


def _statuses(results: Results) -> Counter[str]:
    """The number of runs by status. Records of several pairs may share a run."""
    return Counter({run["folder"]: run["status"] for run in results.runs}.values())


def counts(results: Results) -> list[tuple[str, str]]:
    """Numbers of runs, methods, conditions, pairs and seeds with their nouns."""
    statuses = _statuses(results)
    conditions, pairs = conditions_and_pairs(results)
    methods, seeds = len(results.study["methods"]) - 1, len(results.study["seeds"])
    return [
        (f"{statuses['done']:,} of {statuses.total():,}", "runs done"),
        (f"{methods}", "method" if methods == 1 else "methods"),
        (f"{len(conditions)}", "condition" if len(conditions) == 1 else "conditions"),
        (f"{len(pairs)}", "pair of networks" if len(pairs) == 1 else "pairs of networks"),
        (f"{seeds}", "seed" if seeds == 1 else "seeds"),
    ]


def incomplete(results: Results) -> list[str]:
    """Numbers of failed and of missing runs; empty if all are done."""
    statuses = _statuses(results)
    return [f"{statuses[status]} {status}" for status in ("failed", "missing") if statuses[status]]


def setup(results: Results, metric: str) -> dict[str, Any]:
    """The declaration of the study, the versions of its runs, and the command that repeats it."""
    study = results.study
    conditions, pairs = conditions_and_pairs(results)
    noise_rates = _noise_rates(results)
    folder, declaration = (shlex.quote(str(path)) for path in (results.folder, results.folder / STUDY))
    return {
        "data": distinct(str(condition[0]) for condition in conditions),
        "conditions": [(describe_condition(condition), noise_rates.get(condition)) for condition in conditions],
        "pairs": pairs,
        "teacher_labels": study["teacher_labels"],
        "variants": [
            {
                "name": name,
                "method": str(variant["method"]),
                "settings": settings_text(variant.get("settings") or {}),
            }
            for name, variant in study["methods"].items()
        ],
        "seeds": study["seeds"],
        "train": settings_text(study["train"]),
        "metric": results.metrics[metric].title,
        "extra": [f"{name} {value_text(value)}" for name, value in study["evaluate"].items() if value],
        "trials": counted(study["budget"], "trial") if study["budget"] else "",
        "versions": _versions(results),
        "command": f"tutelage study {declaration} --out {folder}",
    }


def _noise_rates(results: Results) -> dict[Any, str]:
    """The percentage of training labels that each condition changes or removes."""
    percentages = {}
    for cell in results.cells:
        rates = [run["noise_rate"] for run in cell.runs if run["noise_rate"] is not None]
        if cell.method == PLAIN and rates:
            low, high = 100 * min(rates), 100 * max(rates)
            percentages[cell.condition] = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
    return percentages


def _versions(results: Results) -> str:
    """The versions of software in the folders of the runs; all that differ."""
    versions: dict[str, list[str]] = {}
    for run in results.runs:
        try:
            record = parse_json(read_file(results.folder / run["folder"] / "versions.json"))
        except (OSError, ValueError):
            continue
        for name, version in record.items() if isinstance(record, dict) else ():
            versions.setdefault(str(name), []).append(str(version))
    return printable(", ".join(f"{name} {' and '.join(distinct(values))}" for name, values in versions.items()))
