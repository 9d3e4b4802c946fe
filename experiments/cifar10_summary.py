"""The answer of the study on all of CIFAR-10, over its questions: a page and a figure, from the results files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

from experiments.cifar10 import EXPERIMENTS, QUESTIONS, SEEDS, TRIALS, curve_file
from tutelage.report.conclusions import significance
from tutelage.report.markdown import Column, markdown_table
from tutelage.studies.comparison import Comparison
from tutelage.studies.functions import compare, missing_runs
from tutelage.studies.statistics import Interval, detectable_difference, mean_interval

METHODS = tuple(row for row in TRIALS if row != "plain")

HEAD = """
# The nine methods on all of CIFAR-10

**Question.** Sarfraz, Arani and Zonooz (2020) claim that distillation is a general way to train: that nine methods
improve a student consistently, and also with wrong labels and rare classes. How much of this does a small student on
CIFAR-10 show?

Each question has a page with its data, networks, tuning and raw results. Each method is tuned with the same budget as
the plain student, on a seed that is not reported. Three paired seeds; evaluation after the last epoch.
"""

FIGURE = "![Differences to the plain student by method, with 95 % intervals](cifar10.png)"

TAIL = """
**The paper's claims** are those of its abstract; its tables were not available to us, so no number is compared with a
number of the paper.

**Limits.** One student and one data set; 20 to 30 epochs instead of about 200; three seeds, so that only differences of
the last column's size would be seen. Cached teacher outputs need a small number of views of each image (four), which
is weaker augmentation than random crops.

Made by `python docs/make_results.py` from the results of `python -m experiments.cifar10 QUESTION`.
"""

ACCURACY = Column("test accuracy", digits=2)


def accuracies() -> dict[str, Mapping[str, Comparison]]:
    """The comparison of test accuracies of each question whose runs are complete."""
    return {
        name: compare(experiment, experiment.file, "test", "accuracy")
        for name, experiment in EXPERIMENTS.items()
        if experiment.file.exists() and not missing_runs(experiment, experiment.file)
    }


def gains() -> dict[str, dict[str, Interval]]:
    """The panels of the figure: by title of the question, each method's difference to the plain student."""
    return {
        QUESTIONS[name].title: {row: gain for row in METHODS if (gain := rows[row].gain) is not None}
        for name, rows in accuracies().items()
    }


def training_curves(question: str) -> dict[str, dict[str, dict[int, Interval]]]:
    """The panels of a figure: loss and accuracy of the plain student by epoch; none before its seeds are complete."""
    files = [curve_file(question, seed) for seed in SEEDS]
    if not all(file.exists() for file in files):
        return {}
    curves = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {
        title: {
            "plain": {
                epoch: mean_interval([scale * value for value in values])
                for epoch, values in enumerate(zip(*(curve[name] for curve in curves), strict=True), 1)
            }
        }
        for name, title, scale in (("ce", "training loss", 1), ("train_accuracy", "training accuracy, %", 100))
    }


def page() -> str:
    """The page, in Markdown."""
    complete = accuracies()
    parts = [HEAD.strip()]
    if complete:
        lines = [_line(f"[{QUESTIONS[name].title}](cifar10-{name}.md)", rows) for name, rows in complete.items()]
        parts += [FIGURE, markdown_table(TITLES, lines), NOTE.strip()]
    if unfinished := [name for name in QUESTIONS if name not in complete]:
        states = (
            f"[{QUESTIONS[name].title}](cifar10-{name}.md)"
            if EXPERIMENTS[name].file.exists()
            else QUESTIONS[name].title
            for name in unfinished
        )
        parts.append(f"**Not finished:** {'; '.join(states)}.")
    return "\n\n".join([*parts, TAIL.strip()]) + "\n"


TITLES = (
    "",
    "plain",
    "mean gain of the nine",
    "above plain",
    "significant",
    "below plain",
    "significant",
    "detectable",
)

NOTE = """
*Plain*: test accuracy of the plain student, per cent. *Above* and *below plain*: how many of the nine methods have a
higher and a lower mean; *significant*: which of them after Holm's correction for nine comparisons. *Detectable*: the
median over methods of the difference that a paired t-test would detect with a power of 80 %, in percentage points.
"""


def _line(title: str, rows: Mapping[str, Comparison]) -> list[str]:
    gain = {row: rows[row].gain for row in METHODS}
    known = {row: interval for row, interval in gain.items() if interval is not None}
    above = [row for row, interval in known.items() if interval.mean > 0]
    below = [row for row, interval in known.items() if interval.mean < 0]
    limits = sorted(detectable_difference(interval) for interval in known.values())
    return [
        title,
        ACCURACY.mean_and_half(rows["plain"].mean),
        ACCURACY.number(sum(interval.mean for interval in known.values()) / len(known), "+"),
        f"{len(above)}",
        ", ".join(row for row in above if significance(rows[row]) == "above") or "none",
        f"{len(below)}",
        ", ".join(row for row in below if significance(rows[row]) == "below") or "none",
        ACCURACY.number(limits[len(limits) // 2]),
    ]
