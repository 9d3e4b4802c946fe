"""LRE-AMC: a hidden layer pruned without any training, and a small convolutional network pruned as far as it goes."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.paired import Experiment, main
from tutelage.config import Config
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.evaluation import evaluate
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods.lre_amc.groups import Group, compensate, drop, group_of, second_moments
from tutelage.methods.lre_amc.redundancy import eliminate
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.runs.execute import execute

KEPT = {"keep-64": 64, "keep-32": 32, "keep-16": 16}  # of 128 hidden units
RIDGE = 1e-3
DIGITS = Config(data="digits", student="experiments.nets:mlp128", epochs=30, validation=0.0, augment=False)
FASHION = Config(
    data="idx:runs/data/fashion-mnist",
    per_class=400,
    validation=0.25,
    student="experiments.nets:small_vgg",
    epochs=10,
)
AMC: Mapping[str, Mapping[str, Any]] = {
    "as published": {},
    "repair by labels": {"label_weight": 1.0},
    "no repair": {"repair_epochs": 0},
}


def run(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """One row: the dense network, which all rows of a seed share, or what was made of it."""
    config = (DIGITS if condition in KEPT else FASHION).replace(seed=seed, device="cpu")
    data = load_data(config)
    place = folder.parent / f"dense-{seed}" if condition not in KEPT else folder.parent.parent / f"digits/dense-{seed}"
    dense = execute(config, place).model
    if row == "dense":
        return measured(dense, dense, data)
    if condition in KEPT:
        return measured(pruned(dense, data, row, KEPT[condition], seed), dense, data)
    settings = {"dense": "teacher", "tolerance": 0.02, "keep": 0.7, "repair_epochs": 4, **AMC[row]}
    smaller = execute(config.replace(method="lre_amc", teacher=(str(place),), settings=settings), folder)
    again = make_model(config.student, num_classes=data.num_classes, input_shape=data.image_shape).module
    return measured(smaller.model, dense, data) | {
        "latency": slowness(smaller.model.module, again, data),
        "passes": smaller.metrics["forward_passes"]["student"] / len(data.train),
    }


def measured(model: Tapped, dense: Tapped, data: Data) -> dict[str, float]:
    """Test accuracy, and what is left of the dense network's parameters and operations."""
    image = data.modality.example(1, data.input_shape)
    return {
        "accuracy": evaluate(model, data)["accuracy"],
        "parameters": parameters(model) / parameters(dense),
        "flops": flops(model, image) / flops(dense, image),
    }


@torch.no_grad()
def pruned(dense: Tapped, data: Data, row: str, kept: int, seed: int) -> Tapped:
    """A copy of the dense network with so many hidden units, chosen as the row says."""
    model = copy.deepcopy(dense).eval()
    pixels = data.train.inputs
    assert isinstance(pixels, Tensor)
    drawn = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    images = (pixels[drawn[:256]].permute(0, 3, 1, 2) / 255 - model.mean) / model.std
    group = group_of(model.module, "1", images)
    assert group is not None
    gram = second_moments(model.module, group, [images])
    count = group.units - kept
    if row in ("as published", "not adjusted"):
        scale = float(gram.diagonal()[: group.units].mean())
        elimination = eliminate(gram, count, ridge=RIDGE * scale, units=group.units)
        removed = elimination.removed
        if row == "as published":
            compensate(model.module, group, elimination)
    elif row == "random":
        removed = tuple(torch.randperm(group.units, generator=torch.Generator().manual_seed(seed))[:count].tolist())
    else:
        removed = tuple(weak(model.module, group, gram).argsort()[:count].tolist())
    drop(model.module, group, removed)
    return model


def weak(network: nn.Module, group: Group, gram: Tensor) -> Tensor:
    """(units,): root mean square of a unit's activation times the length of the weights that read it."""
    (consumer,) = group.consumers
    read: Tensor = network.get_parameter(f"{consumer}.weight").norm(dim=0)
    return gram.diagonal()[: group.units].sqrt() * read.double()


def slowness(smaller: nn.Module, dense: nn.Module, data: Data, batch: int = 256, repeats: int = 40) -> float:
    """The median time of a batch's forward pass over the dense network's, measured in turn in one process."""
    images = torch.full((batch, *data.image_shape), 0.5)
    seconds: dict[nn.Module, list[float]] = {smaller.eval(): [], dense.eval(): []}
    with torch.inference_mode():
        for number in range(5 + repeats):
            for network, times in seconds.items():
                start = time.perf_counter()
                network(images)
                if number >= 5:
                    times.append(time.perf_counter() - start)
    return statistics.median(seconds[smaller]) / statistics.median(seconds[dense])


HEAD = """
# LRE-AMC: units that others predict

Shah, Olivier and Raj (2020) take out the units of a layer that are nearly linear combinations of the others, after the
activation, and let the next layer's weights take over what they did (LRE). Layers shrink in small steps, and where that
costs too much the dense network is distilled into the smaller one (AMC).

**Without any training.** Digits, an MLP 64-128-10 trained for 30 epochs without augmentation; its hidden layer is cut
to 64, 32 and 16 units at once, by what they do on 256 training images. *As published*: chosen by redundancy, weights
adjusted. *Not adjusted*: the same units. *Magnitude*: the units go whose root mean square activation times the length
of the weights that read it is smallest. *Random*: any. All rows of a seed prune the same trained network.

**As far as it goes.** Fashion-MNIST, 400 images a class of which a quarter is held out, and a straight network of three
convolutions (16, 32, 64 channels) with batch normalisation and a hidden layer of 64, trained for 10 epochs. Each row
prunes that network (`dense=teacher`), a layer by 30 % a step, for as long as it loses at most 2 points of held-out
accuracy; three seeds. *As published*: at most 4 epochs of distillation repair a step. *Repair by labels*: the same with
the label loss alone (w = 1). *No repair*. The time is that of a batch of 256 on one core: the median of 40 passes over
the median of the dense network's 40, which ran in turn with them in one process.
"""

TAIL = """
What it shows: the adjustment is what makes LRE work. With 16 of 128 hidden units and no training at all the network
loses 0.9 ± 0.7 points, and 29 more without the adjustment; units chosen at random or by magnitude lose far more too. On
the convolutional network repair leaves 3 to 7 % of the parameters within the tolerance, pruning without repair 14 to
35 % (three seeds: the interval of this difference includes 0, that of the operations does not). The layers are really
smaller: a pass takes about a quarter of the dense network's time.

What it does not: that distillation repairs better than labels. No difference shows between the two in size or in test
accuracy, within the wide intervals of three seeds. The dense network gets 83 % of its own training part right after 10
epochs, so labels may still teach the smaller one what the dense one does not know; a dense network that has converged
was not tried. The tolerance is one of held-out accuracy, on 1000 images that judge each step and each epoch of repair:
on the test part 3.5 ± 0.8 points are lost. Operations are multiply-adds counted as two, of convolutions and
matrix products. The paper's networks (VGG-16, AlexNet) and data were not run.
"""

EXPERIMENT = Experiment(
    name="lre_amc",
    head=HEAD,
    measure=run,
    rows=("dense", "as published", "not adjusted", "magnitude", "random", "repair by labels", "no repair"),
    conditions={
        **{name: f"Digits: {kept} of 128 hidden units kept, without any training" for name, kept in KEPT.items()},
        "conv": "Fashion-MNIST: pruned as far as 2 points of held-out accuracy allow",
    },
    columns={
        "accuracy": Column("test accuracy"),
        "parameters": Column("parameters left"),
        "flops": Column("operations left"),
        "latency": Column("time of a forward pass, of the dense network's", share=False, digits=2),
        "passes": Column("epochs of repair", share=False),
    },
    baseline="as published",
    seeds=dict.fromkeys(KEPT, range(5)) | {"conv": range(3)},
    skip=frozenset(
        {(name, row) for name in KEPT for row in ("repair by labels", "no repair")}
        | {("conv", row) for row in ("not adjusted", "magnitude", "random")}
    ),
    tail=TAIL,
)

if __name__ == "__main__":
    main(EXPERIMENT)
