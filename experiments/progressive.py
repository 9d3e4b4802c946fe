"""Progressive stepwise training compared with training on all data, on digits, at fewer and at equal sample visits.

python -m experiments.progressive
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from experiments.nets import mlp
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

EPOCHS = 20


@dataclass(frozen=True)
class Row:
    """A method with its settings, and what differs in its recipe."""

    lr: float
    method: str = "progressive"
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS
    schedule: Literal["constant", "cosine"] = "constant"


def trained(row: Row, data: Data, seed: int) -> tuple[Run, Tapped]:
    """Train a row."""
    recipe = Recipe(epochs=row.epochs, batch_size=64, lr=row.lr, schedule=row.schedule)
    run = Run(
        data,
        lambda: Tapped(mlp(data.num_classes, 64), *data.mean_std),
        recipe=recipe,
        hardware=Hardware(device="cpu", precision="float32"),
        seed=seed,
    )
    return run, find(row.method)(run, **row.settings)


def digits() -> Data:
    """Digits without augmentation."""
    return replace(open_data("digits"), views=CropsAndFlips())


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and measure one row; nothing is written to the folder, since it takes a second."""
    training, student = trained(ROWS[row], digits(), seed)
    test, records = training.data.test, [record for fitted in training.fits for record in fitted.history]
    return {
        "accuracy": float(accuracy(training.predict(student, test), test.labels)),
        "visits": sum(record["forward_passes"]["student"] for record in records),
        "epochs": len(records),
    }


ROWS: Mapping[str, Row] = {}
