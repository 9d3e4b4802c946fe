"""Learned and uniform widths of equal cost, with and without distillation: python -m experiments.compact_cnn."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from experiments.dmnn import tiny_images
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods import find
from tutelage.methods.compact_cnn.partition import layer_blocks
from tutelage.methods.compact_cnn.resources import Resource, resources_of
from tutelage.methods.compact_cnn.steps import example_images
from tutelage.methods.compact_cnn.widths import most_important, widened
from tutelage.models.groups import select
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Learner, Run

CHANNELS, STRIDES = (16, 16, 32, 32, 64, 64), (1, 1, 2, 1, 2, 1)
PER_CLASS, EPOCHS, TESTED, FIRST_SEED, TARGET, STRENGTH = 100, 20, 5000, 10, 0.3, 10.0
TEACHER_RATE = 0.05  # compact_cnn_tuning


@dataclass(frozen=True)
class Row:
    """How the network is made smaller, what it learns from, and its learning rate."""

    widths: Literal["dense", "uniform", "learned"] = "learned"
    alpha: float = 0.7
    resource: Resource = "flops"
    settings: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.1  # compact_cnn_tuning


ROWS: Mapping[str, Row] = {
    "dense": Row("dense", 0.0, lr=TEACHER_RATE),
    "uniform, KD": Row("uniform", lr=0.05),
    "uniform, CE": Row("uniform", 0.0, lr=0.05),
    "learned, KD": Row(),
    "learned, CE": Row(alpha=0.0),
    "early blocks x 3": Row(settings={"multipliers": (3.0, 1.0, 0.3, 0.3)}),
    "late blocks x 3": Row(settings={"multipliers": (0.3, 1.0, 3.0, 3.0)}),
    "targets of blocks": Row(settings={"block_targets": (0.3, 0.3, 0.3, 1.0)}),
    "learned, KD, parameters": Row(resource="parameters"),
}


def network(data: Data) -> Tapped:
    """Six 3x3 convolutions with batch normalisation, at three resolutions, and a linear classifier."""
    layers: list[nn.Module] = []
    inputs = data.input_shape[0]
    for channels, stride in zip(CHANNELS, STRIDES, strict=True):
        convolution = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
        inputs = channels
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, data.num_classes))
    return Tapped(nn.Sequential(*layers, *head), *data.mean_std)


def prepared(data: Data, seed: int, lr: float, *teachers: Tapped) -> Run:
    """A run on some data."""
    recipe = Recipe(epochs=EPOCHS, batch_size=64, lr=lr, schedule="cosine")
    hardware = Hardware(device="cpu", precision="float32", workers=0)
    return Run(data, lambda: network(data), teachers, recipe=recipe, hardware=hardware, seed=seed)


@functools.lru_cache(maxsize=1)
def dense(data: Data, seed: int, lr: float) -> Tapped:
    """The dense network, trained on the labels."""
    return find("plain")(prepared(data, seed, lr)).eval()


def trained(row: Row, data: Data, seed: int, rate: float = TEACHER_RATE) -> tuple[Tapped, Run]:
    """The network of a row and its run; ``rate`` is the learning rate of the dense network."""
    teacher = dense(data, seed, rate)
    run = prepared(data, seed, row.lr, teacher)
    if row.widths == "dense":
        return teacher, run
    if row.widths == "learned":
        settings = {"target": TARGET, "resource": row.resource, "strength": STRENGTH, **row.settings}
        return find("compact_cnn")(run, start="teacher", alpha=row.alpha, **settings), run
    compact = run.student(1)
    example = example_images(run, compact)
    blocks = layer_blocks(run.trace(compact), example, "stages")
    resources = resources_of(compact.module, example, blocks, row.resource)
    goal = int(TARGET * resources.total(resources.units))
    counts = widened(resources, [0.05 * units for units in resources.units], goal, 2)
    select(compact.module, resources.groups, most_important([torch.zeros(units) for units in resources.units], counts))
    run.fit(Learner(compact, run.frozen(teacher), run.label_terms(row.alpha)))
    return compact, run


@functools.lru_cache(maxsize=1)
def part(seed: int) -> Data:
    """The training images of a seed."""
    return Subset(PER_CLASS, seed)(tiny_images())


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and measure one row; nothing is written to the folder."""
    seed += FIRST_SEED
    model, training = trained(ROWS[row], part(seed), seed)
    test = tiny_images().test.subset(torch.arange(TESTED))
    whole = dense(part(seed), seed, TEACHER_RATE)
    convolutions = [module.out_channels for module in model.module.modules() if isinstance(module, nn.Conv2d)]
    pairs = [sum(convolutions[n : n + 2]) / sum(CHANNELS[n : n + 2]) for n in (0, 2, 4)]
    example = training.example(model, 1)
    measured = {
        "accuracy": float(accuracy(training.predict(model, test), test.labels)),
        "flops": flops(model, example) / flops(whole, example),
        "parameters": parameters(model) / parameters(whole),
        **dict(zip(("early", "middle", "late"), pairs, strict=True)),
    }
    if ROWS[row].widths == "learned":
        notes = training.notes
        cost = notes["cost"]
        measured |= {
            "off": abs(cost["compact"] / cost["target"] - 1),
            "off before": abs(cost["structure"] / cost["target"] - 1),
            "epochs": len(notes["structure"]),
            "extraction": notes["extraction_difference"],
            "off of blocks": max(
                abs(after / before / TARGET - 1)
                for name, (before, after) in notes["block_cost"].items()
                if name != "last"
            ),
        }
    return measured


EXPERIMENT = Experiment(
    name="compact_cnn",
    head="""
# Learned widths under a budget (`compact_cnn`)

**Questions.** Compact CNN (Ahmed, Zunino, Morerio, Murino, ICPR 2020) learns the number of channels of each layer by a
regulariser on FLOPs or parameters that is weighted by block, and distils the uncompressed network. Is the budget met?
Do the weights of the blocks decide where channels go? Do the two resources cut different layers? And is the learned
network better than one of uniform width and equal cost, and KD better than the labels alone?

**Data and network.** Fashion-MNIST at 7 x 7 (means of 16 pixels), 1,000 training images, 100 of each class; the first
5,000 test images. Six 3 x 3 convolutions with batch normalisation, 16-16-32-32-64-64 channels, two at each of three
resolutions, and a linear classifier.

**Protocol.** *Dense* is trained on the labels; it is the teacher of all other rows, and the learned ones start from it.
*Uniform* multiplies all widths by one factor. *Learned* is `compact_cnn` with `start=teacher`, `strength=10` and new
weights after the structure was learned. The budget is 30 % of the FLOPs of *dense*, in the last row of its parameters.
*KD* is alpha 0.7, T 4; *CE* has alpha 0, in the structure phase too; the rows below *learned, CE* use KD. *Early blocks
x 3* has the multipliers 3, 1, 0.3 for the three stages, *late blocks x 3* 0.3, 1, 3; *targets of blocks* controls each
stage to 30 % of its own FLOPs. Uniform and learned networks of one seed start from parts of the same new weights. 20
epochs of SGD with Nesterov momentum 0.9, weight decay 0.0005, batches of 64, cosine schedule; the structure phase has
at most 20 epochs more. Each seed draws its own training images. Learning rates: of 0.05 and 0.1 the better one on 4,000
unused training images of one other seed (`python -m experiments.compact_cnn_tuning`): 0.1 for the learned rows, 0.05
for the others; the rows below *learned, CE* have that of *learned, KD*. The strength is 10 since with 1 no channel is
switched off within 10 epochs of 15 steps.

**Columns.** *FLOPs* and *parameters* are shares of those of *dense*, counted in the compact network. *Early*, *middle*
and *late* are the shares of the channels of the first, second and last two convolutions that remain. *Off target* is
the relative difference of the cost from the budget in the compact network, *off at the end* that at the end of the
structure phase, *off in a block* the largest relative difference of a stage's FLOPs from 30 % of its own. *Removal* is
the largest difference of a logit by the removal of the channels that were switched off.
""",
    measure=run,
    rows=tuple(ROWS),
    columns={
        "accuracy": Column("test accuracy"),
        "flops": Column("FLOPs"),
        "parameters": Column("parameters"),
        "early": Column("early"),
        "middle": Column("middle"),
        "late": Column("late"),
        "off": Column("off target"),
        "off before": Column("off at the end"),
        "off of blocks": Column("off in a block"),
        "epochs": Column("epochs of structure", share=False, digits=1),
        "extraction": Column("removal", share=False, digits=6),
    },
    baseline="uniform, KD",
    seeds=5,
    tail="""
## What it shows

- **The budget is met on every seed**: the compact network has 98.4 to 100 % of it, for FLOPs and for parameters, and
  never more. The structure phase alone ends within 4.5 % of a budget of the network, within 10 epochs.
- **Multipliers decide where channels go, on every seed**: with *early blocks x 3* 16 to 22 % of the early channels
  remain, without multipliers 34 to 53 %, with *late blocks x 3* 75 to 81 %; of the late channels it is the reverse (87
  to 91, 76 to 81, 53 to 62 %).
- **The two resources cut different layers, on every seed**: at 30 % of the FLOPs 34 to 53 % of the early channels and
  76 to 81 % of the late ones remain, at 30 % of the parameters 81 to 94 and 59 to 64 %.
- Control by block brings each stage within 10 % of its target on four of five seeds; the worst stage of the fifth is
  10.3 % off.
- Removing the channels that were switched off changes no logit by more than 0.00001.
- **No gain in accuracy over uniform width.** At equal FLOPs and with KD the learned network is 0.2 ± 0.5 points below
  the uniform one, which has fewer parameters. Multipliers can hurt: cutting the early layers loses 1.3 ± 0.7 points.
  That learned widths beat the original network is not seen as an effect of the widths: the uniform network with KD is
  0.5 points above *dense*, too.
- KD instead of CE gains 0.2 ± 0.5 points at uniform width (not significant). With the labels alone the structure phase
  removes more early channels, and ends a little earlier, at the same initial strength.

## What it does not show

The paper's networks, data and schedule; trainings of 300 steps. The learning rates are from one seed, so a difference
of half a point between two rates is noise. Networks of equal FLOPs differ in parameters. There is no uniform network
with the budget of the last row.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
