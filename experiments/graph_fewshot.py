"""Few-shot classification with a graph: when does it help, and do rotations and mix-up help the backbone?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, Split, open_data
from tutelage.evaluation.episodes import evaluate_alone, evaluate_episodes, sample_episodes
from tutelage.evaluation.interpolation import NEIGHBOURS
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.training import Run

EPISODES = 100
MANY_QUERIES = 15
FOLDER = Path("runs/data")


@dataclass(frozen=True)
class Backbone:
    """Settings of the method, and a recipe of 8 passes over the training split in about as many steps.

    An epoch of rotations takes four passes, of mix-up one, of mix-up with rotations two. ``rates``: the learning rate
    by data set, chosen by ``python -m experiments.graph_fewshot_tuning``.
    """

    rotation: str
    mix_share: float
    epochs: int
    batch_size: int
    rates: Mapping[str, float]


BACKBONES = {
    "classes": Backbone("never", 0.0, 8, 64, {"omniglot": 0.01, "cifar100": 0.003}),
    "classes, mix-up": Backbone("never", 0.5, 8, 64, {"omniglot": 0.01, "cifar100": 0.003}),
    "classes, rotations": Backbone("both", 0.0, 2, 16, {"omniglot": 0.01, "cifar100": 0.01}),
    "classes, rotations, mix-up": Backbone("both", 0.5, 3, 16, {"omniglot": 0.003, "cifar100": 0.003}),
}
CONDITIONS = {
    "omniglot, 1 shot, 15 queries": ("omniglot", 1, 15),
    "omniglot, 1 shot, 2 queries": ("omniglot", 1, 2),
    "omniglot, 5 shots, 15 queries": ("omniglot", 5, 15),
    "omniglot, 5 shots, 2 queries": ("omniglot", 5, 2),
    "cifar100, 1 shot, 15 queries": ("cifar100", 1, 15),
    "cifar100, 1 shot, 2 queries": ("cifar100", 1, 2),
    "cifar100, 5 shots, 15 queries": ("cifar100", 5, 15),
    "cifar100, 5 shots, 2 queries": ("cifar100", 5, 2),
    "digits, 1 shot, 15 queries": ("digits", 1, 15),
    "digits, 1 shot, 2 queries": ("digits", 1, 2),
    "digits, 5 shots, 15 queries": ("digits", 5, 15),
}


METRICS = {
    "nearest_mean": Column("nearest mean"),
    "without_graph": Column("logistic regression"),
    "accuracy": Column("with the graph"),
    "gain": Column("gain by the graph"),
    "gain_10": Column("gain with k = 10"),
    "inductive": Column("one query at a time"),
    "inductive_graph": Column("one at a time, with a graph"),
    "purity": Column("purity of the graph"),
}


class Convolutions(nn.Module):
    """Four convolutions with batch normalisation and ReLU, three of them with stride 2, and 64 features."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(in_channels, width, 2),
            _block(width, 2 * width, 2),
            _block(2 * width, 2 * width, 2),
            _block(2 * width, 4 * width, 1),
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.fc(self.body(x).mean((2, 3)))
        return logits


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


# --- data


@cache
def data_of(name: str) -> Data:
    """Data whose test classes are not among its training classes; for digits all samples, for the pixels only."""
    if name == "digits":
        digits = open_data("digits")
        inputs = torch.cat([digits.train.inputs, digits.test.inputs])  # type: ignore[list-item]
        everything = Split.of(inputs, torch.cat([digits.train.labels, digits.test.labels]))
        return Data("digits", digits.classes, everything, everything)
    arrays: dict[str, Any] = dict(np.load(FOLDER / {"omniglot": "omniglot-28.npz", "cifar100": "cifar100.npz"}[name]))
    if name == "omniglot":
        train, test = (
            _split(arrays[f"{split}_images"][..., None], arrays[f"{split}_labels"]) for split in ("train", "test")
        )
        return Data(name, tuple(arrays["classes"]), train, test, views=CropsAndFlips(pad=2))
    labels, coarse = arrays["train_labels"], arrays["train_coarse"]
    rank = np.zeros(len(labels), int)  # of each image within its class
    for label in range(100):
        rank[labels == label] = np.arange((labels == label).sum())
    base, novel = (coarse < 12) & (rank < 60), arrays["test_coarse"] >= 16
    train = _split(arrays["train_images"][base], labels[base])
    test = _split(arrays["test_images"][novel], arrays["test_labels"][novel])
    return Data(name, tuple(arrays["classes"]), train, test, views=CropsAndFlips(pad=2, flip=True))


def _split(images: Any, labels: Any) -> Split:
    return Split.of(torch.from_numpy(images), torch.from_numpy(labels).long())


# --- runs


def trained(name: str, row: str, seed: int, rate: float, validation_classes: float = 0.0) -> tuple[Tapped, Run]:
    """A trained backbone, and its run."""
    data, backbone = data_of(name), BACKBONES[row]
    recipe = Recipe(
        epochs=backbone.epochs,
        batch_size=backbone.batch_size,
        lr=rate,
        optimizer="Adam",
        weight_decay=0.0,
        schedule="cosine",
    )
    run = Run(
        data,
        lambda: Tapped(Convolutions(data.num_classes, data.image_shape[0]), *data.mean_std),
        recipe=recipe,
        hardware=Hardware(device="cpu", precision="float32", workers=0),
        seed=seed,
    )
    settings = {
        "rotation": backbone.rotation,
        "mix_share": backbone.mix_share,
        "validation_classes": validation_classes,
    }
    return find("graph_fewshot")(run, **settings), run


@cache
def features(name: str, row: str, seed: int) -> Tensor:
    """The raw features (N, D) of the test split, in its order."""
    data = data_of(name)
    if row == "pixels":
        return data.test.inputs.flatten(1).float() / 255  # type: ignore[union-attr]
    network, run = trained(name, row, seed, BACKBONES[row].rates[name])
    return run.predict(network, data.test, ("embedding",))


def run(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """Evaluate a row's features on episodes that depend on the seed only."""
    name, shots, queries = CONDITIONS[condition]
    generator = torch.Generator().manual_seed(1000 + seed)
    labels = data_of(name).test.labels
    episodes = sample_episodes(labels, EPISODES, generator, shots=shots, queries=queries)
    metrics = evaluate_episodes(features(name, row, seed), episodes)
    fixed = (
        metrics
        if metrics["neighbours"] == NEIGHBOURS
        else evaluate_episodes(features(name, row, seed), episodes, neighbours=NEIGHBOURS)
    )
    alone = evaluate_alone(features(name, row, seed), episodes) if queries == MANY_QUERIES else {}
    return {key: (metrics | alone).get(key, math.nan) for key in METRICS} | {"gain_10": fixed["gain"]}


EXPERIMENT = Experiment(
    name="graph_fewshot",
    head="""
# Few-shot classification with a graph over the samples of an episode (`graph_fewshot`)

**Questions.** When does it help to interpolate features over a graph of the episode's samples? Do rotations and mix-up
help the backbone? How much of the graph's gain comes from the other queries? From memory, the paper reports gains of
about 10 points at one shot and 2 at five shots, on miniImageNet with a WRN-28-10.

**Episodes.** Five classes that the backbone was not trained on, with one or five labelled samples and 15 or 2 queries
of each class; 100 episodes per seed. The seed alone determines the episodes, so all rows use the same. Five seeds.

**Data.** *Omniglot*: 185 characters of six alphabets (3,700 images, 28x28) for training, 57 characters of two other
alphabets for the episodes. *CIFAR-100*: 60 classes of 12 superclasses with 60 images each for training, and 20 classes
of four other superclasses with their 100 test images each; the published split of CIFAR-FS was not available. *Digits*
(8x8, all ten classes, pixels only) is the positive control: another program had measured a gain of about 8 points at
one shot and 15 queries, and a loss at 2 queries.

**Rows.** *pixels* uses the images themselves as features. The others use the 64 features of a network of four
convolutions: *classes* is trained by plain classification of the base classes, and the last row is the method with its
defaults.

**Training.** Each row gets 8 passes of the training split through the network, whatever its losses (an epoch with
rotations takes four passes), in about as many steps. Adam without weight decay, a cosine schedule in each stage, random
crops by 2 pixels, flips on CIFAR-100. The learning rate (0.003 or 0.01) was chosen for each row and data set by the
1-shot accuracy on a held-out fifth of the base classes, with a seed that is not reported.

**Evaluation.** The graph is not tuned: alpha = 0.5, kappa = 3, and k = 10 limited to s + q - 1 (s shots, q queries).
These are the authors' constants except for the limit; *k = 10* has no limit. Logistic regression has C = 100. The
support and the queries are each centred by their mean; for *one query at a time* the query is centred by the mean of
the support. *Purity* is the share of the graph's weight within a class.
""",
    measure=run,
    rows=("pixels", *BACKBONES),
    columns=METRICS,
    baseline="classes",
    conditions={
        condition: condition.replace("cifar", "CIFAR-").replace("omniglot", "Omniglot").replace("digits", "Digits")
        for condition in CONDITIONS
    },
    skip=frozenset((condition, row) for condition in CONDITIONS if condition.startswith("digits") for row in BACKBONES),
    seeds=5,
    tail="""
## What it shows

- **The graph helps at one shot and 15 queries, if its edges are pure enough**: by 8 points on the pixels of digits, and
  by 3 to 5 on Omniglot with every backbone and with pixels. In these cases about half of the graph's weight or more is
  within a class. At five shots and 15 queries the effect on both is between +1.4 and -3.0 points.
- **At 2 queries it hurts.** With the authors' k = 10, a graph joins more samples than a class has: at one shot this
  loses 8 points on digits, and 8 to 10 with every backbone on Omniglot. Limiting k to s + q - 1 removes most of the
  loss but not all: on Omniglot only the backbone of *classes* then gains at one shot, and at five shots every row
  loses.
- **On weak features it has no effect or hurts**: on CIFAR-100, where about a third of the graph's weight or less is
  within a class, no backbone gains in any of the four settings.
- **The gain comes from the other queries.** In no row is a graph of one query and its support better than no graph
  (tried with one query of each class and episode). The column *logistic regression* is partly transductive too, since
  the queries are centred by their own mean: one query at a time, it loses up to 3 points at one shot and 15 queries.
- **Rotations and mix-up did not help a backbone of this size and budget.** With the same number of passes, both reduce
  accuracy on Omniglot, rotations most. On CIFAR-100 rotations do so as well, while mix-up changes accuracy by at most 1
  point at 15 queries. An epoch with rotations takes four passes, so each image is seen a quarter as often.

## What it does not show

- The paper's setting: this is a small network on small images, so only directions can be compared. The authors train
  for up to 800 epochs; nothing follows for rotations and mix-up with such a budget. Nor need invariance to rotation
  suit characters.
- Fully tuned learning rates: each was chosen from two values by one seed, and three of the four rows on Omniglot have
  0.01, the upper one.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
