"""Learning curves of the factors of ``small_data`` on Fashion-MNIST: python -m experiments.small_data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments.ffl import images
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data
from tutelage.data.conditions import Subset
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.studies.functions import compare
from tutelage.studies.statistics import Interval
from tutelage.training import Run

SIZES = (10, 40, 160, 640)  # training images of each class
STEPS, TESTED = 1000, 3000


@dataclass(frozen=True)
class Row:
    """The settings of the method, the width of the network, and the learning rate (small_data_tuning)."""

    lr: float
    width: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)


PLAIN: Mapping[str, Any] = {"augmentation": "none"}
ROWS: Mapping[str, Row] = {
    "plain": Row(0.003),
    "static augmentation": Row(0.003, settings={"augmentation": "static"}),
    "dynamic augmentation": Row(0.003, settings={"augmentation": "dynamic"}),
    "decoder": Row(0.003, settings={"reconstruct": 1.0}),
    "half the width": Row(0.003, width=0.25),
    "twice the width": Row(0.003, width=1),
}


def clothes() -> Data:
    """Fashion-MNIST at 14 x 14, whose views are crops of the image padded by two pixels, and mirror images."""
    return replace(images(), views=CropsAndFlips(pad=2, flip=True))


def trained(row: Row, data: Data, seed: int) -> tuple[Run, Tapped]:
    """Train a row on all training images of the data."""

    def student() -> Tapped:
        built = make_model(f"cnn{row.width:g}", num_classes=data.num_classes, input_shape=data.input_shape)
        return Tapped(built.module, *data.mean_std)

    recipe = Recipe(epochs=1, batch_size=32, optimizer="Adam", lr=row.lr, weight_decay=0, schedule="cosine")
    hardware = Hardware(device="cpu", precision="float32", workers=0)
    run = Run(data, student, recipe=recipe, hardware=hardware, seed=seed)
    return run, find("small_data")(run, steps=STEPS, **{**PLAIN, **row.settings})


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and measure one row at all sizes; nothing is written to the folder."""
    accuracies = {}
    for size in SIZES:
        data = Subset(size, seed)(clothes())
        test = data.test.subset(torch.arange(TESTED))
        training, student = trained(ROWS[row], data, seed)
        accuracies[str(size)] = float(accuracy(training.predict(student, test), test.labels))
    return accuracies


def curves() -> dict[str, dict[str, dict[int, Interval]]]:
    """The means and the paired differences to plain by row and number of training images, for a figure."""
    panels: dict[str, dict[str, dict[int, Interval]]] = {}
    for size in SIZES:
        for row, comparison in compare(EXPERIMENT, EXPERIMENT.file, "all", str(size)).items():
            for title, interval in (("test accuracy", comparison.mean), ("difference to plain", comparison.gain)):
                if interval is not None:
                    panels.setdefault(title, {}).setdefault(row, {})[size] = interval
    return panels


EXPERIMENT = Experiment(
    name="small_data",
    head="""
# Training on small data (`small_data`)

**Question.** Brigato and Iocchi (2020) train small networks on few images and vary the width, dropout, augmentation
and, in an early version, an unsupervised loss. Two versions of the abstract contradict each other about augmentation.
Which of these factors matter here, and for how many images?

**Data.** Fashion-MNIST at 14 x 14 (means of four pixels), 10, 40, 160 and 640 training images of each class, and the
first 3,000 test images. Each seed draws its own images; the smaller draws are parts of the larger ones. Rows of one
seed share images, initial weights (where the widths are equal) and batches.

**Training.** 1,000 steps of Adam with batches of 32 and a cosine schedule, without weight decay, **for every number of
images and every row**; the last step is measured.

**Rows.** *plain* is `cnn0.5`, with 8, 16 and 32 channels and no normalisation, without any of the factors. *static
augmentation* trains on ten random views of each image, drawn once; *dynamic augmentation* draws a new view each time: a
crop of the image padded by two pixels, or its mirror image. *decoder* reconstructs the images with a weight of 1. The
last two rows are plain networks of other widths: `cnn0.25` and `cnn1`.

**Tuning.** The learning rate, 0.001 or 0.003, is the better one for 40 images of each class, two other seeds and
3,000 unused training images (`python -m experiments.small_data_tuning`), and the same for all numbers of images:
0.003 is selected for every row.

![Learning curves and differences to plain, with 95 % intervals](small_data.png)
""",
    measure=run,
    rows=tuple(ROWS),
    columns={str(size): Column(f"{size} of each class") for size in SIZES},
    baseline="plain",
    seeds=5,
    tail="""
## What it shows

- **Width matters, and more with more images**: twice the width gains 3.1 ± 1.0 and 3.6 ± 0.7 points with 160 and 640
  images of each class, half the width loses 2.9 ± 1.6 and 3.8 ± 2.5. With 10 and 40 images the intervals include 0.
- **Augmentation does not help at equal steps.** With 160 and 640 images of each class, static and dynamic augmentation
  cost 6 to 8 points: 1,000 steps are too few for so small a network to fit crops and mirror images as well, which at
  14 x 14 pixels move an image by a seventh of its width. With 10 images of each class nothing is seen.
- **The decoder changes nothing**: its intervals include 0 at every size.

## What it does not show

A difference below about 1 to 7 points, depending on row and size (see above); CIFAR-10 and the paper's networks; longer
training, in which augmentation may pay; dropout; a learning rate of its own for each number of images.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
