"""CHILLAX on digits whose labels are mostly groups of classes, beside rows that use less or other knowledge.

python -m experiments.chillax
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.nets import mlp
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data, Hierarchy, Imprecise, Split, open_data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.terms import CrossEntropy, Term
from tutelage.terms.precision import full_precision
from tutelage.training import Learner, Run

HIERARCHY = "round: [0, 2, 3, 5, 6, 8, 9]\nstraight: [1, 4, 7]\n"
TRAINED, RATE = 600, 0.9

ROWS: Mapping[str, float] = {  # the tuned learning rates
    "leaves only": 0.3,
    "CHILLAX": 0.1,
    "marginal softmax": 0.1,
    "random leaf": 0.03,
    "uniform soft labels": 0.03,
    "precise labels": 0.1,
}


@full_precision
def marginal_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log sum of softmax(z)_c over the classes c that the label leaves open, per sample (B,); targets are (B, C)."""
    open_classes = torch.where(targets > 0, 0.0, float("-inf"))
    return -(logits.log_softmax(1) + open_classes).logsumexp(1)


class MarginalLikelihood(Term):
    """``marginal_nll`` of the student's logits, (B,)."""

    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        return marginal_nll(student["logits"], self.required(batch, "the batch, for its targets").targets)


def digits(seed: int) -> tuple[Data, Split]:
    """Digits with 600 training samples drawn by the seed, without augmentation; and the others."""
    data = open_data("digits")
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    drawn, others = (data.train.subset(part) for part in (order[:TRAINED], order[TRAINED:]))
    return replace(data, train=drawn, views=data.modality.unaugmented), others


def unused(seed: int) -> Split:
    """The training samples that were not drawn."""
    return digits(seed)[1]


def imprecise(data: Data, seed: int) -> Data:
    """The data with labels that are groups of digits."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.yaml"
        file.write_text(HIERARCHY)
        return Imprecise(str(file), RATE, seed=seed)(data)


def trained(row: str, seed: int, lr: float | None = None) -> tuple[Run, Tapped, Hierarchy]:
    """Train a row."""
    precise, _ = digits(seed)
    groups = {"round": [0, 2, 3, 5, 6, 8, 9], "straight": [1, 4, 7]}
    data = precise if row == "precise labels" else imprecise(precise, seed)
    labels = data.train.labels
    if row == "leaves only":
        labels = labels * (labels.amax(1, keepdim=True) == 1)
    if row == "random leaf":
        labels = torch.multinomial(labels, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    data = replace(data, train=replace(data.train, labels=labels))
    run = Run(
        data,
        lambda: Tapped(mlp(10, 64, 128), *data.mean_std),
        recipe=Recipe(epochs=120, batch_size=128, lr=lr or ROWS[row], schedule="cosine"),
        hardware=Hardware(device="cpu", precision="float32", workers=0),
        seed=seed,
    )
    hierarchy = Hierarchy.of(groups, data.classes)
    if row == "CHILLAX":
        return run, find("chillax")(run, hierarchy=groups), hierarchy
    student = run.student()
    term = MarginalLikelihood() if row == "marginal softmax" else CrossEntropy()
    run.fit(Learner(student, None, {"labels": term}))
    return run, student, hierarchy


def measure(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """Train a row; measure accuracy and distances in the hierarchy on the test split."""
    run, student, hierarchy = trained(row, seed)
    logits, labels = run.predict(student, run.data.test), run.data.test.labels
    distance = hierarchy.distances[logits.argmax(1), labels].float()
    return {
        "accuracy": float(accuracy(logits, labels)),
        "group": float((distance <= 2).float().mean()),
        "distance": float(distance.mean()),
    }


EXPERIMENT = Experiment(
    name="chillax",
    head="""
# Imprecise labels (`chillax`)

**Question.** Most labels name only a group of classes. CHILLAX (Brust, Barz, Denzler 2020) trains one output for each
node of the hierarchy, and a label trains only the nodes that it determines. Is this better than guessing a class of the
group, or than leaving imprecise labels out, and does a simpler loss do as well?

**Data.** Digits of scikit-learn, 8 x 8 pixels, without augmentation: 600 training images drawn by the seed. Two groups
of similar shapes, {0, 2, 3, 5, 6, 8, 9} and {1, 4, 7}; 90 % of the labels become their group, so that about 60 images
have a class.

**Network and training.** An MLP with two hidden layers of 128 units; 120 epochs of SGD with Nesterov momentum 0.9,
weight decay 0.0005, batches of 128, cosine schedule. Rows of a seed share data, labels and batches. The learning rate
of each row is the best of 0.03, 0.1 and 0.3 for two other seeds on unused training images
(`python -m experiments.chillax_tuning`).

**Rows.** *Leaves only* is trained on the precise labels alone; the baseline. *Marginal softmax*: cross-entropy with the
sum of the probabilities of the classes in the group. *Random leaf*: a class of the group is drawn for each imprecise
label. *Uniform soft labels*: cross-entropy with the label spread evenly over the group, which is what other methods do
with such data. *Precise labels*: all 600 classes are known; the upper bound.

**Columns.** *Right group*: the predicted class is in the group of the true one. *Distance*: edges between predicted and
true class, 0, 2 within the group and 4 otherwise.
""",
    measure=measure,
    rows=tuple(ROWS),
    columns={
        "accuracy": Column("test accuracy"),
        "group": Column("right group"),
        "distance": Column("distance in the hierarchy", share=False, digits=3),
    },
    baseline="leaves only",
    seeds=5,
    tail="""
## What it shows

- **Imprecise labels do no harm and help**: CHILLAX is 50.3 ± 4.6 points better than a random leaf, 6.9 ± 3.4 better
  than uniform soft labels and 1.7 ± 1.3 better than the precise labels alone. What it gains over those is the group: it
  is right for 97.0 in place of 90.8 %, as often as with all labels precise.
- **The marginal softmax does as well** (CHILLAX - marginal softmax: -0.9 ± 2.0 points), with an ordinary classifier and
  no hierarchy in the network.

## What it does not show

The paper's data (NABirds, ILSVRC2012), deep hierarchies and networks; other shares of imprecise labels. Training that
is too short would look like a broken method, since each class has few precise labels per epoch.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
