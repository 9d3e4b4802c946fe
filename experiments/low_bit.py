"""Quantisation to 2 bits from twenty images, with scales for groups of channels: python -m experiments.low_bit."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.ffl import images
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.models.packed import bit_counts
from tutelage.models.surgery.quantise import apply as quantise
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

TRAINED, TESTED, FIRST_SEED = 800, 5000, 10  # training images per class of the float network, test images
PER_CLASS, STEPS = 2, 20
ON_CPU = Hardware(device="cpu", precision="float32", workers=0)
BOTH: Mapping[str, Any] = {"block_share": 0.4}
FIRST: Mapping[str, Any] = {"block_share": 1.0}
SECOND: Mapping[str, Any] = {"block_share": 0.0}
LABELS: Mapping[str, Any] = {"block_share": 0.0, "alpha": 0.0, "beta": 0.0, "label_weight": 1.0}


@dataclass(frozen=True)
class Row:
    """How a network is quantised and trained.

    Attributes:
        groups: G; 1000 is one scale for each channel.
        epochs: of all stages; 0 for no training.
        rate: the learning rate of both stages (low_bit_tuning).
        settings: of the method.
    """

    groups: int = 8
    epochs: int = 0
    rate: float = 1e-3
    settings: Mapping[str, Any] = field(default_factory=dict)


NO_FEATURES: Mapping[str, Any] = {"alpha": 0.0}
ROWS: Mapping[str, Row | None] = {
    "float": None,
    "layer": Row(1),
    "group": Row(8),
    "channel": Row(1000),
    "layer, stage 1": Row(1, 10, 3e-3, FIRST),
    "group, stage 1": Row(8, 10, 3e-3, FIRST),
    "channel, stage 1": Row(1000, 10, 3e-3, FIRST),
    "group, stage 2": Row(8, 25, 3e-3, SECOND),
    "layer, both": Row(1, 25, 3e-3, BOTH),
    "group, both": Row(8, 25, 1e-3, BOTH),
    "channel, both": Row(1000, 25, 3e-4, BOTH),
    "layer, both without features": Row(1, 25, 3e-3, {**BOTH, **NO_FEATURES}),
    "group, stage 2 without features": Row(8, 25, 3e-3, {**SECOND, **NO_FEATURES}),
    "group, both without features": Row(8, 25, 1e-3, {**BOTH, **NO_FEATURES}),
    "group, labels": Row(8, 25, 3e-3, LABELS),
}
CONDITIONS = {
    "rescaled": "Rescaled network, 2 bits",
    "plain": "Network as trained, 2 bits",
    "rescaled-3": "Rescaled network, 3 bits",
    "rescaled-4": "Rescaled network, 4 bits",
}
SEEDS = {"rescaled": range(5), "plain": range(3), "rescaled-3": range(3), "rescaled-4": range(3)}
THREE_BITS = ("float", "layer", "group", "channel", "layer, both", "group, both")
FOUR_BITS = ("float", "layer", "group", "channel", "group, both")
ON_PLAIN = tuple(row for row in ROWS if not row.endswith("without features"))
MEASURED = {"rescaled": tuple(ROWS), "plain": ON_PLAIN, "rescaled-3": THREE_BITS, "rescaled-4": FOUR_BITS}


def network() -> nn.Sequential:
    """Four convolutions and a linear layer, without normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@functools.cache
def clothes(seed: int) -> Data:
    """Fashion-MNIST at 14 x 14 without augmentation, with a part of the training images."""
    return Subset(TRAINED, seed)(replace(images(), views=CropsAndFlips()))


@functools.cache
def float_network(seed: int) -> Tapped:
    """The trained network."""
    data = clothes(seed)
    recipe = Recipe(epochs=8, batch_size=64, optimizer="AdamW", lr=2e-3, weight_decay=0.01, schedule="cosine")
    run = Run(data, lambda: Tapped(network(), *data.mean_std), recipe=recipe, hardware=ON_CPU, seed=seed)
    return find("plain")(run).eval()


def rescaled(model: Tapped, seed: int) -> Tapped:
    """The same function with other weights: each hidden channel is multiplied by a factor from 0.1 to 10.

    The logarithms of the factors are uniform. The next layer divides by them, which ReLU and pooling permit.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for layer in model.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, following in itertools.pairwise(layers):
            assert layer.bias is not None
            factor = 10 ** (2 * torch.rand(len(layer.weight), generator=generator) - 1)
            layer.weight.mul_(factor.view(-1, 1, 1, 1))
            layer.bias.mul_(factor)
            following.weight.div_(factor.view(1, -1, *(1,) * (following.weight.ndim - 2)))
    return model


def trained(condition: str, row: Row | None, seed: int) -> Tapped:
    """The network of a row."""
    name, _, bits = condition.partition("-")
    teacher = float_network(seed) if name == "plain" else rescaled(float_network(seed), seed)
    data = clothes(seed)
    if row is None:
        return teacher
    if not row.epochs:
        student = copy.deepcopy(teacher)
        quantise(student.module, torch.zeros(2, *data.input_shape), bits=int(bits or 2), groups=row.groups)
        return student
    run = Run(
        data,
        lambda: Tapped(network(), *data.mean_std),
        [teacher],
        recipe=Recipe(epochs=row.epochs, batch_size=64),
        hardware=ON_CPU,
        seed=seed,
    )
    return find("low_bit")(
        run,
        bits=int(bits or 2),
        groups=row.groups,
        per_class=PER_CLASS,
        steps=STEPS,
        block_rate=row.rate,
        joint_rate=row.rate,
        **row.settings,
    )


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Quantise and measure one row; nothing is written to the folder."""
    seed += FIRST_SEED
    model, data = trained(condition, ROWS[row], seed), clothes(seed)
    test = data.test.subset(torch.arange(TESTED))
    measuring = Run(data, lambda: model, hardware=ON_CPU)
    bits = bit_counts(model.module)
    return {
        "accuracy": float(accuracy(measuring.predict(model, test), test.labels)),
        "size": bits["total"] / bits["float"],
    }


EXPERIMENT = Experiment(
    name="low_bit",
    head="""
# Low-bit quantisation from twenty images (`low_bit`)

**Question.** Yuan, Chen, Hu and Peng (2020) quantise a trained network to few bits with a handful of images. They give
groups of output channels a scale each, a compromise between one scale for the layer and one for each channel, and
optimise first each block on its own and then the whole network under the float network. Are groups better than one
scale for the layer, and are two stages better than one of them?

**Data and network.** Fashion-MNIST at 14 x 14 (means of four pixels) without augmentation; 800 training images of each
class for the float network, the first 5,000 test images. Four convolutions (16, 32, 32 and 64 channels) and a linear
layer, without normalisation; 8 epochs of AdamW.

- *As trained*: this network. Its channels have similar ranges, so one scale fits all: a negative control.
- *Rescaled*: the same function. Each hidden channel is multiplied by a factor from 0.1 to 10 (uniform logarithms), and
  the next layer divides by it.

**Protocol.** Inner layers have the bits of the heading, the first and the last layer 8; activations are float. Two
images of each class, without labels; batches of all twenty, Adam. Stage 1 has 200 steps for each block, stage 2 has
300; rows with one of them have 200, or 500 for stage 2, which is what both stages cost. *Without features*, stage 2
has the soft targets alone. Learning rates of 0.0003, 0.001 and 0.003 were tried for each row on the rescaled network
at 2 bits with seed 100, which is not reported, except that *stage 1* of *layer* and *channel* has the rate of *group*;
0.003, the largest, was chosen for *layer, both*, *group, stage 2* and the rows of stage 1. Other headings have the
same rates. In these trials blocks whose error did not fall were not restored, and the test images were the same. Five
paired seeds for the rescaled network at 2 bits, three for the others, since CPU time was short.

- *layer*, *group*, *channel*: one scale for the layer, for each of 8 groups of channels, or for each channel, of the
  smallest squared error, without training.
- *group, labels*: 500 steps of cross-entropy with the labels of the twenty images.
""",
    measure=run,
    rows=tuple(ROWS),
    columns={"accuracy": Column("test accuracy"), "size": Column("bits, by those of the float network")},
    baseline="group, both",
    conditions=CONDITIONS,
    seeds=SEEDS,
    skip=frozenset((condition, row) for condition in CONDITIONS for row in ROWS if row not in MEASURED[condition]),
    tail="""
## What it shows

- **Groups are as good as a scale for each channel, and better than one for the layer**, where channels differ in size.
  At 2 bits and after both stages, 8 groups reach 74 %, one scale for each channel 72 % (no difference that the seeds
  can tell), and one scale for the layer 60 % with a spread of 11 points. Of the float network's 80 % the groups lose 6
  points, with 7 % of its bits: of the float network's bits, the scales and the index of the groups are 0.2 %, the
  scales of each channel 0.5 %.
- On the network as trained the kinds of scale do not differ after training: all are within a point of the float
  network. Nothing can be shown there, as expected of the negative control.
- **Two stages are better than stage 1 alone** (by 20 points on the rescaled network), which in turn is far better than
  rounding without training (23 %).
- **They are better than stage 2 alone only without features in stage 2**: then the paired difference is 5.2 ± 3.3
  points (71 and 66 %). With features, 500 steps of stage 2 are as good as both stages (75 and 74 %). What helps is the
  signal from inside the network, whether block by block or all at once; it need not come in two stages.
- The features are worth 8.6 ± 4.0 points in stage 2 alone, and 3.0 ± 2.4 after stage 1.
- Twenty labels are no substitute: 58 % with cross-entropy on them, and 16 points less than both stages on the network
  as trained, where rounding alone has a higher accuracy.
- With more bits the loss of the groups falls from 6 points to 4 (3 bits) and 2.5 (4 bits). With 3 bits one scale for
  the layer is 6 points below the groups, which three seeds cannot distinguish from none.

## What it does not show

The paper's networks on ImageNet, of which no number could be checked; quantised activations; networks with residual
blocks; the choice of G. The rates of *layer, both* and *group, stage 2* are the largest that were tried, so these rows
may be better at larger ones. All rows of a seed have the same twenty images.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
