"""Small experiments in rows and seeds: run what is missing, keep every number, make the page.

A module of this folder declares an ``EXPERIMENT``, or several by name as ``EXPERIMENTS``; ``python -m
experiments.NAME`` runs it, and its page in ``docs/results`` is made of the raw results alone: one JSONL file, a line a
run.
"""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import pkgutil
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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

Place = tuple[str, str, int]  # condition, row, seed
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
        conditions: name in files and in ``run`` to the heading of its table; "" for one without a table. All runs of
            one end before those of the next begin.
        seeds: how many; or which, by condition.
        skip: pairs of condition and row that are not run.
        tail: what the page says last: what is shown, and what is not.
        arguments: what stands behind ``python -m experiments.MODULE`` in its command, where a module has several.
        module: its module, if that is not its name.
    """

    name: str
    head: str
    run: Run
    rows: Sequence[str]
    metrics: Mapping[str, Metric]
    against: str
    conditions: Mapping[str, str] = field(default_factory=lambda: {"all": ""})
    seeds: int | Mapping[str, Sequence[int]] = 3
    skip: frozenset[tuple[str, str]] = frozenset()
    tail: str = ""
    module: str = ""
    arguments: str = ""

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"python -m experiments.{self.module or self.name} {self.arguments}".rstrip()

    def seeds_of(self, condition: str) -> Sequence[int]:
        """The seeds of a condition."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds[condition]

    @property
    def file(self) -> Path:
        """Its raw results, one line a run."""
        return RESULTS / f"{self.name}.jsonl"


def installed() -> list[Experiment]:
    """The experiments of this folder, by name."""
    modules = (importlib.import_module(f"experiments.{m.name}") for m in pkgutil.iter_modules(experiments.__path__))
    declared = [
        one for m in modules for one in (getattr(m, "EXPERIMENT", None), *getattr(m, "EXPERIMENTS", {}).values())
    ]
    return sorted((one for one in declared if one is not None), key=lambda one: one.name)


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """The command of an experiment: runs what has no line yet, and writes the page."""
    parser = argparse.ArgumentParser(description=experiment.name)
    parser.add_argument("--rows", nargs="+", choices=experiment.rows, default=list(experiment.rows))
    parser.add_argument("--conditions", nargs="+", choices=list(experiment.conditions))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each in a process of one thread")
    chosen = parser.parse_args(arguments)
    missing = missing_runs(experiment)
    wanted = {
        condition: [
            (at, row, seed)
            for at, row, seed in missing
            if at == condition and row in chosen.rows and (chosen.seeds is None or seed in chosen.seeds)
        ]
        for condition in chosen.conditions or experiment.conditions
    }
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(experiment.name, total=sum(map(len, wanted.values())))
        for runs in wanted.values():
            for condition, row, seed in _each_done(experiment, runs, chosen.jobs):
                progress.update(task, advance=1, description=f"{condition} · {row} · seed {seed}")
    (RESULTS / f"{experiment.name}.md").write_text(page(experiment), encoding="utf-8")


def missing_runs(experiment: Experiment) -> list[Place]:
    """The runs that have no line yet, in the order in which they are done."""
    done = {(line["condition"], line["row"], line["seed"]) for line in raw.read(experiment.file)}
    return [
        (condition, row, seed)
        for condition in experiment.conditions
        for seed in experiment.seeds_of(condition)
        for row in experiment.rows
        if (condition, row) not in experiment.skip and (condition, row, seed) not in done
    ]


def _each_done(experiment: Experiment, runs: Sequence[Place], jobs: int) -> Iterator[Place]:
    """Do the runs, as many at the same time; each as it ends."""
    if jobs == 1:
        for place in runs:
            _do(experiment, place)
            yield place
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        begun = {pool.submit(_do, experiment, place): place for place in runs}
        try:
            for future in as_completed(begun):
                future.result()
                yield begun[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _do(experiment: Experiment, place: Place) -> None:
    condition, row, seed = place
    start = time.perf_counter()
    folder = Path("runs") / experiment.name / condition / f"{row}-{seed}".replace(" ", "-")
    numbers = experiment.run(condition, row, seed, folder)
    record(experiment, condition, row, seed, numbers, time.perf_counter() - start)


def record(
    experiment: Experiment, condition: str, row: str, seed: int, numbers: Mapping[str, float], seconds: float
) -> None:
    """Append one run to the raw results."""
    command = f"{experiment.command} --rows {row!r} --seeds {seed}"
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
    if missing := missing_runs(experiment):
        parts.append(f"**Not finished: {len(missing)} runs are still to be done.**")
    for condition, title in experiment.conditions.items():
        if title:
            parts.append(f"## {title}")
        if title or len(experiment.conditions) == 1:
            parts.append(_table(experiment, condition))
    parts.append(
        f"Mean over the seeds ± half of its 95 % t interval, and in brackets the mean of the paired differences to "
        f"*{experiment.against}* ± half of its 95 % t interval, bold where that does not hold 0; per cent and points, "
        "where the number is a share. No correction for the number of comparisons."
    )
    if experiment.tail:
        parts.append(experiment.tail.strip())
    parts.append(
        f"Made by `{experiment.command}` (CPU); raw results: "
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
