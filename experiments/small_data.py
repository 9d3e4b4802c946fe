"""Learning curves on small data: digits with 5 to 80 training samples per class, at equal numbers of steps.

python -m experiments.small_data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.models import zoo
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

STEPS = 300
SIZES = (5, 10, 20, 40, 80)  # training samples per class


@dataclass(frozen=True)
class Row:
    """A network, its learning rate and the settings of ``small_data``."""

    lr: float
    network: str = "cnn1"
    settings: Mapping[str, Any] = field(default_factory=lambda: {"augmentation": "none"})


ROWS: Mapping[str, Row] = {
    "cnn1": Row(0.003),
    "cnn0.5": Row(0.003, "cnn0.5"),
    "dropout 0.5": Row(0.003, settings={"augmentation": "none", "dropout": 0.5}),
    "static": Row(0.003, settings={"augmentation": "static"}),
    "dynamic": Row(0.003, settings={"augmentation": "dynamic"}),
    "reconstruction": Row(0.003, settings={"augmentation": "none", "reconstruct": 1.0}),
}


def trained(row: Row, data: Data, seed: int) -> tuple[Run, Tapped]:
    """Train a row."""

    def student() -> Tapped:
        network = zoo.build(row.network, num_classes=data.num_classes, input_shape=data.input_shape)
        return Tapped(network, *data.mean_std)

    run = Run(
        data,
        student,
        recipe=Recipe(epochs=1, batch_size=16, optimizer="Adam", lr=row.lr, schedule="cosine"),
        hardware=Hardware(device="cpu", precision="float32"),
        seed=seed,
    )
    return run, find("small_data")(run, steps=STEPS, **row.settings)


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and measure one row; nothing is written to the folder, since it takes a second."""
    data = Subset(int(condition), seed)(open_data("digits"))
    training, student = trained(ROWS[row], data, seed)
    return {
        name: float(accuracy(training.predict(student, split), split.labels))
        for name, split in (("test", data.test), ("train", data.train))
    }
