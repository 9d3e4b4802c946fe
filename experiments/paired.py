"""Small experiments in rows and seeds: run what is missing, keep every number, make the page.

A module of this folder declares an ``EXPERIMENT``; ``python -m experiments.NAME`` runs it, and its page in
``docs/results`` is made of the raw results alone: one JSONL file, a line a run.
"""

from __future__ import annotations

import argparse
import importlib
import math
import pkgutil
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

import experiments
from experiments import raw
from tutelage.studies.statistics import mean_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"

Run = Callable[[str, str, int, Path], Mapping[str, float]]


@dataclass(frozen=True)
class Metric:
    """A measured number: its title, and whether it is a share that is shown in per cent, its differences in points."""

    title: str
    share: bool = True
    digits: int = 1


@dataclass(frozen=True)
class Experiment:
    """Rows that are compared, seed by seed, under one condition or several.

    Attributes:
        name: of its folder and page in ``docs/results``.
        head: what the page says first, in Markdown: the question, data, networks, protocol.
        run: ``(condition, row, seed, folder)`` to what was measured, shares in [0, 1]. What is random in it depends on
            the seed alone, and rows of one seed share data, first weights and batches. The folder is for its runs.
        rows: what is compared.
        metrics: by the keys that ``run`` gives.
        against: the row that the others are compared with.
        conditions: name in files and in ``run`` to the heading of its table.
        seeds: how many.
        skip: pairs of condition and row that make no sense.
        tail: what the page says last: what is shown, and what is not.
    """

    name: str
    head: str
    run: Run
    rows: Sequence[str]
    metrics: Mapping[str, Metric]
    against: str
    conditions: Mapping[str, str] = field(default_factory=lambda: {"all": ""})
    seeds: int = 3
    skip: frozenset[tuple[str, str]] = frozenset()
    tail: str = ""

    @property
    def file(self) -> Path:
        """Its raw results, one line a run."""
        return RESULTS / f"{self.name}.jsonl"


def installed() -> list[Experiment]:
    """The experiments of this folder, by name."""
    modules = (importlib.import_module(f"experiments.{m.name}") for m in pkgutil.iter_modules(experiments.__path__))
    return sorted((m.EXPERIMENT for m in modules if hasattr(m, "EXPERIMENT")), key=lambda found: found.name)


def main(experiment: Experiment) -> None:
    """The command of an experiment: runs what has no line yet, and writes the page."""
    parser = argparse.ArgumentParser(description=experiment.name)
    parser.add_argument("--rows", nargs="+", choices=experiment.rows, default=list(experiment.rows))
    parser.add_argument("--conditions", nargs="+", choices=list(experiment.conditions))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(experiment.seeds)))
    arguments = parser.parse_args()
    done = {(line["condition"], line["row"], line["seed"]) for line in raw.read(experiment.file)}
    wanted = [
        (condition, row, seed)
        for condition in arguments.conditions or experiment.conditions
        for seed in arguments.seeds
        for row in arguments.rows
        if (condition, row) not in experiment.skip and (condition, row, seed) not in done
    ]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(experiment.name, total=len(wanted))
        for condition, row, seed in wanted:
            progress.update(task, description=f"{condition} · {row} · seed {seed}")
            start = time.perf_counter()
            place = Path("runs") / experiment.name / condition / f"{row}-{seed}".replace(" ", "-")
            numbers = experiment.run(condition, row, seed, place)
            record(experiment, condition, row, seed, numbers, time.perf_counter() - start)
            progress.advance(task)
    (RESULTS / f"{experiment.name}.md").write_text(page(experiment), encoding="utf-8")


def record(
    experiment: Experiment, condition: str, row: str, seed: int, numbers: Mapping[str, float], seconds: float
) -> None:
    """Append one run to the raw results."""
    command = f"python -m {Path(sys.argv[0]).parent.name}.{Path(sys.argv[0]).stem} --rows {row!r} --seeds {seed}"
    if len(experiment.conditions) > 1:
        command += f" --conditions {condition}"
    line = {
        "condition": condition,
        "row": row,
        "seed": seed,
        "measured": {key: None if math.isnan(value) else float(value) for key, value in numbers.items()},
        "seconds": round(seconds, 1),
        "command": command,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": "cpu",
    }
    raw.append(experiment.file, line)


def page(experiment: Experiment) -> str:
    """The page, from the raw results alone."""
    parts = [experiment.head.strip()]
    for condition, title in experiment.conditions.items():
        if title:
            parts.append(f"## {title}")
        parts.append(_table(experiment, condition))
    parts.append(
        f"Mean over the seeds ± half of its 95 % t interval, and in brackets the mean of the paired differences to "
        f"*{experiment.against}* ± half of its 95 % t interval, bold where that does not hold 0; per cent and points, "
        "where the number is a share. No correction for the number of comparisons."
    )
    if experiment.tail:
        parts.append(experiment.tail.strip())
    parts.append(
        f"Made by `python -m experiments.{experiment.name}` (CPU); raw results: "
        f"[{experiment.file.name}]({experiment.file.name}), a line a run."
    )
    return "\n\n".join(parts) + "\n"


def _table(experiment: Experiment, condition: str) -> str:
    head = " | ".join(["", "seeds", *(metric.title for metric in experiment.metrics.values())]).strip()
    lines = [f"| | {head.removeprefix('| ')} |", "| --- " * (len(experiment.metrics) + 2) + "|"]
    reference = measured(experiment, condition, experiment.against)
    for row in experiment.rows:
        if (condition, row) in experiment.skip:
            continue
        found = measured(experiment, condition, row)
        cells = [_cell(experiment, key, row, found, reference) for key in experiment.metrics]
        lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(experiment: Experiment, condition: str, row: str) -> dict[int, dict[str, float | None]]:
    """The numbers of a row, by seed."""
    return {
        int(line["seed"]): line["measured"]
        for line in raw.read(experiment.file)
        if (line["condition"], line["row"]) == (condition, row)
    }


def _cell(
    experiment: Experiment,
    key: str,
    row: str,
    found: Mapping[int, Mapping[str, float | None]],
    reference: Mapping[int, Mapping[str, float | None]],
) -> str:
    metric = experiment.metrics[key]
    scale = 100 if metric.share else 1
    values = {seed: numbers[key] for seed, numbers in found.items() if numbers.get(key) is not None}
    if not values:
        return "–"
    own = [scale * value for value in values.values() if value is not None]
    text = f"{statistics.fmean(own):.{metric.digits}f}"
    if len(own) > 1:
        text += f" ± {_half(own):.{metric.digits}f}"
    gaps = [
        scale * (value - there)
        for seed, value in values.items()
        if value is not None and (there := reference.get(seed, {}).get(key)) is not None
    ]
    if row == experiment.against or len(gaps) < 2:
        return text
    mean, half = statistics.fmean(gaps), _half(gaps)
    gain = f"{mean:+.{metric.digits}f} ± {half:.{metric.digits}f}"
    return f"{text} ({f'**{gain}**' if abs(mean) > half else gain})"


def _half(values: Sequence[float]) -> float:
    interval = mean_interval(values)
    return (interval.high - interval.low) / 2
