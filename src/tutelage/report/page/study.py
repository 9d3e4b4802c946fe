"""The head of the page: the question, the answer, and what was asked."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from tutelage.files import read_file
from tutelage.parsing import parse_json
from tutelage.report.conclusions import summary
from tutelage.report.page.markup import command_of, counted, distinct, listing, places, settings_of, value_of
from tutelage.studies import PLAIN
from tutelage.studies.reading import STUDY
from tutelage.studies.results import Results, describe_condition
from tutelage.text import printable


def question(results: Results) -> str:
    """What the study asks."""
    methods = [name for name in results.study["methods"] if name != PLAIN]
    conditions, pairs = places(results)
    asked = f"Does {methods[0]} help" if len(methods) == 1 else f"Which of {len(methods)} ways to distil helps"
    if not methods:
        asked = "How well does plain training do"
    beyond = " over plain training" if methods else ""
    where = f" on {', '.join(distinct(str(condition[0]) for condition in conditions))}"
    many = [counted(len(conditions), "condition")] if len(conditions) > 1 else []
    many += [counted(len(pairs), "pair") + " of networks"] if len(pairs) > 1 else []
    return escape(f"{asked}{beyond}{where}{', under ' + ' and '.join(many) if many else ''}?")


def state(results: Results) -> str:
    """How many runs, methods, conditions, pairs and seeds."""
    runs = {run["folder"]: run["status"] for run in results.runs}  # lines of several pairs may share one
    counts = Counter(runs.values())
    conditions, pairs = places(results)
    methods = len(results.study["methods"]) - 1
    facts = [
        (f"{counts['done']:,} of {len(runs):,}", "runs done"),
        (f"{methods}", "method" if methods == 1 else "methods"),
        (f"{len(conditions)}", "condition" if len(conditions) == 1 else "conditions"),
        (f"{len(pairs)}", "pair of networks" if len(pairs) == 1 else "pairs of networks"),
        (f"{len(results.study['seeds'])}", "seed" if len(results.study["seeds"]) == 1 else "seeds"),
    ]
    missing = [
        f"{counts[status]} {word}" for status, word in (("failed", "failed"), ("missing", "missing")) if counts[status]
    ]
    said = f'<li class="bad"><b>{escape(", ".join(missing))}</b> <a href="#failed">which</a></li>' if missing else ""
    return f'<ul class="state">{"".join(f"<li><b>{value}</b> {words}</li>" for value, words in facts)}{said}</ul>'


def answered(results: Results, metric: str, interval: str) -> str:
    """The three sentences."""
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in summary(results, metric, interval))
    return f'<div class="answer">{said}</div>'


def asked(results: Results, metric: str) -> str:
    """The declaration of the study, and what its runs were made with."""
    study = results.study
    conditions, pairs = places(results)
    rates = _rates(results)
    again = f"tutelage study {shlex.quote(str(results.folder / STUDY))} --out {shlex.quote(str(results.folder))}"
    beyond = [name for name, value in study["evaluate"].items() if value]
    facts: list[tuple[str, str]] = [
        ("Data", escape(", ".join(distinct(str(condition[0]) for condition in conditions)))),
        (
            "Conditions",
            listing(escape(describe_condition(condition)) + rates.get(condition, "") for condition in conditions),
        ),
        ("Networks", listing(f"{escape(teacher)} teaches {escape(student)}" for teacher, student in pairs)),
        ("Teachers learn from", escape(", ".join(f"{one} labels" for one in study["teacher_labels"]))),
        ("Methods", listing((_way(name, way) for name, way in study["methods"].items()), "flow")),
        ("Seeds", escape(", ".join(str(seed) for seed in study["seeds"])) + ", paired over methods"),
        ("Training", settings_of(study["train"]) or "as the defaults are"),
        ("Judged by", escape(results.metrics[metric].title) + ", of the test part, after the last epoch"),
        (
            "Measured beyond the usual",
            escape(", ".join(f"{name} {value_of(study['evaluate'][name])}" for name in beyond)),
        ),
        (
            "Tuning",
            f"{counted(study['budget'], 'trial')} a method, judged on held-out training data"
            if study["budget"]
            else "none: every method has the settings given here, or else its defaults",
        ),
        ("Versions", _versions(results)),
        ("Again", command_of(again)),
    ]
    return '<dl class="facts">' + "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in facts if said) + "</dl>"


def _rates(results: Results) -> dict[Any, str]:
    """What share of the training labels came out wrong, by condition."""
    found = {}
    for cell in results.cells:
        rates = [run["noise_rate"] for run in cell.runs if run["noise_rate"] is not None]
        if cell.method == PLAIN and rates:
            low, high = 100 * min(rates), 100 * max(rates)
            spread = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
            found[cell.condition] = f' <span class="quiet">({spread} % of the training labels wrong)</span>'
    return found


def _way(name: str, way: Mapping[str, Any]) -> str:
    settings = settings_of(way.get("settings") or {})
    function = f' <span class="quiet">{escape(str(way["method"]))}</span>' if way["method"] != name else ""
    return f"<b>{escape(name)}</b>{function}{' ' + settings if settings else ''}"


def _versions(results: Results) -> str:
    """What the runs were made with, as their folders say; all that differ."""
    found: dict[str, list[str]] = {}
    for run in results.runs:
        try:
            said = parse_json(read_file(results.folder / run["folder"] / "versions.json"))
        except (OSError, ValueError):
            continue
        for name, version in said.items() if isinstance(said, dict) else ():
            found.setdefault(str(name), []).append(str(version))
    said = ", ".join(f"{name} {' and '.join(distinct(versions))}" for name, versions in found.items())
    return escape(printable(said))
