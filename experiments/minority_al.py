"""Active learning for minority classes, beside random and uncertain samples: python -m experiments.minority_al."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.paired import Experiment, main
from experiments.samples import all_digits
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.studies.functions import compare
from tutelage.studies.statistics import Interval
from tutelage.training import FitResult, Learner, Run

INITIAL, ROUNDS, BUDGET, EPOCHS = 20, 12, 10, 20
SIZES = tuple(int(110 * 0.7**label) for label in range(10))
TAIL = range(7, 10)
RATES = (0.05, 0.2, 0.5)


@dataclass(frozen=True)
class Row:
    """Settings of the method, and the learning rate selected on other seeds."""

    rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)


ROWS: Mapping[str, Row] = {
    "random": Row(0.2, {"query": "base", "base": "random"}),
    "margin": Row(0.2, {"query": "base", "base": "margin"}),
    "entropy": Row(0.2, {"query": "base", "base": "entropy"}),
    "minority": Row(0.2),
    "minority, uncertain first": Row(0.2, {"rank": "uncertain"}),
    "soft": Row(0.2, {"query": "soft"}),
    "half soft": Row(0.2, {"query": "soft", "share": 0.5}),
}


class EvaluatedRun(Run):
    """A run that evaluates the network of each fit on the test split."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.curve: list[float] = []

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        """See ``Run.fit``."""
        fitted = super().fit(*learners, **options)
        test = self.data.test
        self.curve.append(balanced_accuracy(self.predict(learners[0].model, test).argmax(1), test.labels))
        return fitted


def balanced_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share of their samples (N,) that are predicted correctly."""
    shares = [(predictions[labels == label] == label).float().mean() for label in torch.unique(labels)]
    return float(torch.stack(shares).mean())


@functools.cache
def digits(seed: int) -> Data:
    """Digits: 110, 77, .. 4 images of the classes 0 to 9 as the pool, drawn by the seed; the others for testing."""
    whole = all_digits()
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    members = [order[whole.labels[order] == label] for label in range(10)]
    pool = torch.cat([part[:size] for part, size in zip(members, SIZES, strict=True)]).sort().values
    rest = torch.cat([part[size:] for part, size in zip(members, SIZES, strict=True)]).sort().values
    return Data("digits", tuple("0123456789"), whole.subset(pool), whole.subset(rest))


def trained(row: Row, seed: int) -> EvaluatedRun:
    """The run of a row."""
    data = digits(seed)

    def student() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), *data.mean_std)

    recipe = Recipe(epochs=EPOCHS, batch_size=32, lr=row.rate, schedule="cosine")
    hardware = Hardware(device="cpu", precision="float32", workers=0)
    run = EvaluatedRun(data, student, recipe=recipe, hardware=hardware, seed=seed)
    find("minority_al")(run, initial=INITIAL, rounds=ROUNDS, budget=BUDGET, **row.settings)
    return run


def measure(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and measure one row; nothing is written to the folder."""
    return measured(trained(ROWS[row], seed))


def measured(run: EvaluatedRun) -> dict[str, float]:
    """Its metrics; those of single rounds have the number of labels in their names."""
    history = run.notes["rounds"]
    tail = [sum(entry["counts"][label] for label in TAIL) for entry in history]
    precisions = [entry["precision"] for entry in history if "precision" in entry]
    metrics = {
        "tail": float(tail[-1]),
        "variation": history[-1]["variation"],
        "accuracy": run.curve[-1],
        "mean accuracy": sum(run.curve) / len(run.curve),
    }
    if precisions:
        metrics["precision"] = sum(precisions) / len(precisions)
    for number, (found, accuracy) in enumerate(zip(tail, run.curve, strict=True)):
        metrics |= {f"tail {INITIAL + number * BUDGET}": float(found)}
        metrics |= {f"accuracy {INITIAL + number * BUDGET}": accuracy}
    return metrics


def curves() -> dict[str, dict[str, dict[int, Interval]]]:
    """The means over seeds by panel, row and number of labels."""
    panels = {"labels of classes 7 to 9": "tail", "balanced accuracy": "accuracy"}
    numbers = range(INITIAL, INITIAL + ROUNDS * BUDGET + 1, BUDGET)
    return {
        title: {
            row: {number: mean for number in numbers if (mean := _mean(f"{metric} {number}", row)) is not None}
            for row in ("random", "margin", "entropy", "minority", "soft")
        }
        for title, metric in panels.items()
    }


def _mean(metric: str, row: str) -> Interval | None:
    return compare(EXPERIMENT, EXPERIMENT.file, "all", metric)[row].mean


def tune() -> None:
    """Print for each row and learning rate the mean over two seeds that are not reported."""
    for name, row in ROWS.items():
        for rate in RATES:
            runs = [measured(trained(Row(rate, row.settings), seed)) for seed in (100, 101)]
            keys = ("tail", "variation", "accuracy", "mean accuracy")
            print(f"{name}, {rate}:", {key: round(sum(run[key] for run in runs) / 2, 3) for key in keys}, flush=True)


EXPERIMENT = Experiment(
    name="minority_al",
    head="""
# Active learning for minority classes (`minority_al`)

**Question.** Aggarwal, Popescu and Hudelot (2020) request labels for samples that probably belong to classes with few
labels so far. Does this find the samples of rare classes, and is it better than random requests and than uncertainty,
which also prefers rare classes? The acquisition is inferred from the abstract.

**Data.** Handwritten digits of scikit-learn. The pool has 110, 77, 53, .. 4 images of the classes 0 to 9 (each 0.7
times as many as the one before), 352 in all, drawn by the seed; classes 7 to 9 have 19 together. The other 1,445 images
are for testing.

**Protocol.** 20 random labels, then 12 rounds of 10. The classifier is linear on the 64 pixels, trained anew in each
round: 20 epochs of SGD with Nesterov momentum 0.9, weight decay 0.0005, batches of 32, cosine schedule. Rows of one
seed share the pool, the first labels and the initial weights. Learning rate: of 0.05, 0.2 and 0.5, the best mean over
rounds for two other seeds (`python -m experiments.minority_al tune`), which is 0.2 for every row.

**Rows.** *Random*, *margin* and *entropy*: these base acquisitions alone (`query=base`). *Minority*: the default.
*Minority, uncertain first*: the smallest margin first within a predicted class. *Soft*: the largest expected deficit.
*Half soft*: half of each round by it, half by the margin.

**Columns.** *Labels of classes 7 to 9* is how many of their 19 samples have been found. *Variation* is the coefficient
of variation of the label counts of all classes. Balanced accuracy is the mean accuracy over classes. *Precision* is the
share of requests for a minority class that were of this class, as the mean over rounds that have such requests.

![Labels of the rare classes and balanced accuracy over rounds](minority_al.png)

Lines are means over seeds, bands their 95 % intervals.
""",
    measure=measure,
    rows=tuple(ROWS),
    columns={
        "tail": Column("labels of classes 7 to 9, of 19", share=False),
        "variation": Column("variation of label counts", share=False, digits=2),
        "accuracy": Column("final balanced accuracy"),
        "mean accuracy": Column("mean over rounds"),
        "precision": Column("precision"),
    },
    baseline="random",
    seeds=10,
    tail="""
## What it shows

- **The rare classes are found**: 18.8 of their 19 samples, where random requests find 7.3. Every acquisition for
  minority classes ends there, and the label counts vary half as much.
- **Uncertainty finds most of them as well**: 17.2 by the margin. *Minority* finds 1.6 ± 0.6 more (paired, ten seeds)
  and the variation of its label counts is 0.12 ± 0.03 smaller.
- **In accuracy it has no advantage over uncertainty.** *Minority* - *margin* is 0.0 ± 0.5 points at the end and
  -0.7 ± 0.7 in the mean over rounds; with uncertain samples first, +0.3 ± 0.6. All of them are 9 to 10 points better
  than random requests at the end.
- **The pure soft score is poor in early rounds**: 6.8 ± 1.1 points below the margin in the mean over rounds. Its
  requests balance the labels best, but most are certain and teach little.

## What it does not show

The paper's data and networks, and its comparison of two schemes: `scheme=classifier` needs pretrained features that
transfer, and is tested for its procedure only.
""",
)

if __name__ == "__main__":
    if sys.argv[1:] == ["tune"]:
        tune()
    else:
        main(EXPERIMENT)
