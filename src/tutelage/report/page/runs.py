"""Runs without a result, and what tuning tried."""

from __future__ import annotations

import math
from html import escape

from tutelage.report.page.markup import command_of, counted, error_of, format_number, settings_of, where_of
from tutelage.studies.reading import Record
from tutelage.studies.results import Results
from tutelage.tasks import Metric


def failed(results: Results) -> str:
    """The runs that failed or are missing, and why."""
    missing = [run for run in results.runs if run["status"] != "done"]
    if not missing:
        return ""
    lines = "".join(
        f"<li><b>{escape(run['method'])}</b>, {escape(where_of(results, run))}, seed {run['seed']}: "
        f'<span class="missing">{escape(run["status"])}</span>{error_of(run)}'
        f'<code class="folder">{escape(run["folder"])}</code>{command_of(run["command"])}</li>'
        for run in missing
    )
    return (
        '<p class="note">Their values are missing in the table and in the figures. Running the study again repeats '
        "only the failed runs; to repeat a damaged run, remove its folder first.</p>"
        f'<ul class="failed">{lines}</ul>'
    )


def trials(results: Results) -> str:
    """Of each method: where was searched, what was tried and what it gave, and what was chosen."""
    if not results.trials:
        return ""
    groups: dict[tuple[str, str], list[Record]] = {}
    for trial in results.trials:
        groups.setdefault((where_of(results, trial), trial["method"]), []).append(trial)
    main = results.metrics[results.task.main_metric]
    head = f"held-out {main.short_title}{', %' if main.percent else ''}"
    several = len({where for where, _ in groups}) > 1
    blocks = ""
    for (where, method), trials in groups.items():
        searched = "; ".join(f"{name} {where}" for name, where in trials[0]["space"].items())
        sign = -1 if results.task.lower_is_better else 1
        ordered = sorted(
            trials, key=lambda trial: -math.inf if trial["score"] is None else sign * trial["score"], reverse=True
        )
        lines = "".join(_trial(trial, main) for trial in ordered)
        title = f"{method}, {where}" if several else method
        blocks += (
            f'<details class="block"><summary>{escape(title)} '
            f'<span class="quiet">{counted(len(trials), "trial")}</span></summary>'
            f"{f'<p>Searched: {escape(searched)}</p>' if searched else ''}"
            f'<div class="wide"><table><caption>Trials of {escape(title)}, the best first</caption><thead><tr>'
            '<th scope="col"></th><th scope="col">'
            f'{escape(head)}</th><th scope="col">seed</th>'
            f'<th scope="col">settings</th></tr></thead><tbody>{lines}</tbody></table></div></details>'
        )
    return (
        '<p class="note">Each method had as many trials, judged on held-out training data whose labels are as wrong as '
        f"the rest. The chosen one is marked.</p>{blocks}"
    )


def _trial(trial: Record, metric: Metric) -> str:
    chosen = bool(trial.get("chosen"))
    score = (
        format_number(trial["score"], metric)
        if trial["score"] is not None
        else f'<span class="missing">{escape(trial["status"])}</span>'
    )
    return (
        f'<tr{" class=chosen" if chosen else ""}><td class="words">{"✓ chosen" if chosen else ""}</td><td>{score}</td>'
        f'<td>{trial["seed"]}</td><td class="words">{settings_of(trial["settings"])}{error_of(trial)}</td></tr>'
    )
