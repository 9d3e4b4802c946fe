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


ROWS: Mapping[str, Row] = {
    "all data": Row(0.2, "plain"),
    "all data, cosine": Row(0.2, "plain", schedule="cosine"),
    "all data, 12 epochs": Row(0.2, "plain", epochs=12),
    "progressive": Row(0.1),
    "progressive, constant batch": Row(0.1, settings={"batch": "constant"}),
    "progressive, 32 epochs": Row(0.1, epochs=32),
    "progressive, shrink 0.7": Row(0.1, settings={"shrink": 0.7}),
}


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
        "visits": sum(record["forward_passes"]["student"] for record in records) / 1000,
        "epochs": len(records),
    }


EXPERIMENT = Experiment(
    name="progressive",
    head="""
# Training on growing data (`progressive`)

**Question.** The abstract of Prasad et al. (2020) says that training on a growing part of the data, with a batch size
and a learning rate for each part instead of a decay, needs less computation and is more accurate. Does a network of
this size reach the same accuracy with fewer processed samples?

**Data and network.** Digits: 1,437 training and 360 test images of 8 x 8, without augmentation. An MLP with two hidden
layers of 256.

**Training.** SGD with Nesterov momentum, weight decay 0.0005, batches of 64 and, unless a row says otherwise, 20 epochs
and a constant learning rate. Evaluation is after the last epoch. *Samples* is the number of samples that the
network processed in training, by the counter of the training loop, in thousands.

**Rows.**

- *all data*: ordinary training with a constant rate, the baseline. *cosine* has a cosine schedule; *12 epochs* has
  about the samples of *progressive*.
- *progressive*: the defaults: four stages of five epochs with a quarter, a half, three quarters and all of the samples,
  and batches of 16, 32, 48 and 64. *32 epochs* has the samples of *all data*.
- *constant batch*: batches of 64 in every stage, the negative control.
- *shrink 0.7*: weights are multiplied by 0.7 and get noise of 0.01 between stages.

**Tuning.** By `python -m experiments.progressive_tuning`, on two other seeds and a fifth of the training split: a
learning rate of 0.1 or 0.2 for *all data*, *cosine*, *progressive* and *constant batch*. The first two have 0.2, the
other rows 0.1; with 0.2 and small batches, *progressive* reached only 48 % in the mean.
""",
    measure=run,
    rows=tuple(ROWS),
    columns={
        "accuracy": Column("test accuracy"),
        "visits": Column("samples", share=False, digits=1),
        "epochs": Column("epochs", share=False, digits=0),
    },
    baseline="all data",
    seeds=5,
    tail="""
## What it shows

- **0.625 of the samples, by the counter**: 17,600 in place of 28,160, in as many steps.
- **No significant loss of accuracy**: -0.2 ± 0.7 points against *all data*; a difference of 1.0 would be detected with
  a power of 80 %. Five seeds do not show that the accuracy is the same within half a point.
- **No significant difference to fewer epochs on all data**: *progressive* is 0.3 ± 1.4 points above *12 epochs*, which
  processes fewer samples; a difference of 1.9 would be detected.
- With batches of 64 in every stage the accuracy falls by 0.4 ± 0.2 points; the difference between *progressive* and
  *constant batch*, 0.2 ± 0.7, is not significant. *Shrink 0.7* does not help (-0.3 ± 0.3).
- With small batches, *progressive* needs a smaller learning rate: the one that was best for *all data* was unstable.

## What it does not show

That the abstract's schedule is more accurate than a decaying rate: *cosine* and *all data* do not differ significantly
here, so there is little to gain. One data set and one network were tried.
""",
)


if __name__ == "__main__":
    main(EXPERIMENT)
