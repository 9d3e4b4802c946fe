"""The frame of the experiments: a command that does the missing runs and writes a page in ``docs/results``.

Each module of this folder defines an ``EXPERIMENT``, or several by name as ``EXPERIMENTS``. ``python -m
experiments.NAME`` does the runs that have no line in ``docs/results/NAME.jsonl`` and writes ``docs/results/NAME.md``
from these lines alone.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

import experiments
from tutelage.errors import TutelageError
from tutelage.report.console import study_progress
from tutelage.report.markdown import Column, comparison_note, comparison_table, detectable_note
from tutelage.studies.functions import FunctionRun, FunctionStudy, compare, missing_runs, run_function_study
from tutelage.studies.workers import LocalWorkers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Experiment(FunctionStudy):
    """A function study with a command and a page.

    Attributes:
        head: the beginning of the page, in Markdown: question, data, networks, protocol.
        columns: the displayed metrics by their names in the result of ``measure``; shares are in [0, 1].
        tail: the end of the page: what the results show and what they do not.
        arguments: the arguments of its command, if a module has several experiments.
        module: its module, if that is not its name.
    """

    head: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)
    tail: str = ""
    module: str = ""
    arguments: str = ""

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"python -m experiments.{self.module or self.name} {self.arguments}".rstrip()

    @property
    def file(self) -> Path:
        """The file of its results, one line per run."""
        return RESULTS / f"{self.name}.jsonl"

    def provenance(self, run: FunctionRun) -> dict[str, Any]:
        """The command, versions and device of a run."""
        command = f"{self.command} --rows {run.row!r} --seeds {run.seed}"
        if len(self.conditions) > 1:
            command += f" --conditions {run.condition}"
        return {"command": command, **super().provenance(run), "device": "cpu"}


def installed() -> list[Experiment]:
    """The experiments of this folder, by name."""
    modules = (importlib.import_module(f"experiments.{m.name}") for m in pkgutil.iter_modules(experiments.__path__))
    declared = [
        experiment
        for m in modules
        for experiment in (getattr(m, "EXPERIMENT", None), *getattr(m, "EXPERIMENTS", {}).values())
    ]
    return sorted(
        (experiment for experiment in declared if experiment is not None), key=lambda experiment: experiment.name
    )


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Run an experiment's command: do the missing runs and write the page."""
    parser = argparse.ArgumentParser(description=experiment.name)
    parser.add_argument("--rows", nargs="+", choices=experiment.rows, default=list(experiment.rows))
    parser.add_argument("--conditions", nargs="+", choices=list(experiment.conditions))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, each in its own process")
    options = parser.parse_args(arguments)
    selected = [
        run
        for run in experiment.runs()
        if run.row in options.rows
        and (options.conditions is None or run.condition in options.conditions)
        and (options.seeds is None or run.seed in options.seeds)
    ]
    workers = LocalWorkers(options.jobs) if options.jobs > 1 else None
    with study_progress(Console(stderr=True), quiet=False) as watch:
        try:
            run_function_study(experiment, experiment.file, only=selected, workers=workers, watch=watch)
        except TutelageError as error:
            raise SystemExit(str(error)) from None
    (RESULTS / f"{experiment.name}.md").write_text(page(experiment), encoding="utf-8")


def page(experiment: Experiment) -> str:
    """The page, made from the results file alone."""
    parts = [experiment.head.strip()]
    if missing := missing_runs(experiment, experiment.file):
        parts.append(f"**Not finished: {len(missing)} runs are still to be done.**")
    for condition, title in experiment.conditions.items():
        if title:
            parts.append(f"## {title}")
        if title or len(experiment.conditions) == 1:
            pairs = [
                (column, compare(experiment, experiment.file, condition, metric))
                for metric, column in experiment.columns.items()
            ]
            measured = [pair for pair in pairs if any(row.mean is not None for row in pair[1].values())]
            columns, compared = zip(*(measured or pairs), strict=True)
            parts.append(comparison_table(columns, compared))
            if measured and (note := detectable_note(*measured[0])):
                parts.append(note)
    parts.append(comparison_note(experiment.baseline))
    if experiment.tail:
        parts.append(experiment.tail.strip())
    file = experiment.file.name
    parts.append(f"Made by `{experiment.command}` (CPU). Raw results: [{file}]({file}), one line a run.")
    return "\n\n".join(parts) + "\n"
