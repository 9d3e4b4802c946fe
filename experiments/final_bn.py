"""Final batch normalisation with a minority class of 1 %: how much of its gain is the layer's own?

python -m experiments.final_bn
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from experiments.nets import mlp, small_resnet8
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split, open_data
from tutelage.data.views import CropsAndFlips
from tutelage.evaluation import ece, per_class_f1
from tutelage.methods import find
from tutelage.methods.final_bn import InverseFrequency
from tutelage.methods.final_bn.surgery.final_bn import remove
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run

# Trained networks with their settings of final_bn, or None; two rows may evaluate the same network in different ways.
NETWORKS: Mapping[str, Mapping[str, object] | None] = {
    "plain": None,
    "class-weighted": None,
    "final BN": {},
    "final BN, no affine": {"affine": False},
    "final BN, class-weighted": {"weighted": True},
    "final BN on the features": {"position": "penultimate"},
}
ADJUSTED, REMOVED = "logit adjustment", ", removed at test"


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train and evaluate one row; nothing is written to the folder."""
    data, logits, without = logits_of(condition, "plain" if row == ADJUSTED else row.removesuffix(REMOVED), seed)
    labels = data.test.labels
    if row == ADJUSTED:
        logits = logits - (data.train.labels.bincount() / len(data.train)).log()
    if row.endswith(REMOVED):
        logits = without
    majority, minority = per_class_f1(logits, labels).tolist()
    return {
        "minority": minority,
        "majority": majority,
        "auroc": float(roc_auc_score(labels, logits[:, 1] - logits[:, 0])),
        "confidence": float(logits.softmax(1).amax(1).mean()),
        "ece": float(ece(logits, labels)),
    }


@lru_cache(maxsize=len(NETWORKS))
def logits_of(condition: str, trained: str, seed: int) -> tuple[Data, Tensor, Tensor]:
    """The data, and the logits of its test split with the final layer and without it."""
    data, make, recipe = setting(condition, seed)
    training = Run(data, make, recipe=recipe, hardware=Hardware(device="cpu", workers=0), seed=seed)
    settings = NETWORKS[trained]
    if settings is None:
        weight = InverseFrequency(data.train, 2) if trained == "class-weighted" else None
        student = training.student()
        training.fit(Learner(student, None, {"ce": CrossEntropy()}, sample_weight=weight))
    else:
        student = find("final_bn")(training, **settings)
    logits = training.predict(student, data.test)
    if settings is not None:
        remove(student.module)
    return data, logits, training.predict(student, data.test)


def setting(condition: str, seed: int) -> tuple[Data, Callable[[], Tapped], Recipe]:
    """The two-class data, the network and the recipe of a condition."""
    recipe = Recipe(epochs=40, batch_size=64, lr=0.01, weight_decay=0.0, schedule="constant")
    if condition.startswith("digits"):
        kind = condition.removeprefix("digits-")
        few, batch = (602, 64) if kind == "balanced" else (8, int(kind))
        data = two_classes(open_data("digits"), range(5), range(5, 10), 602, few, seed)
        return data, tapped(data, partial(mlp, 2, 64, 128)), recipe.replace(batch_size=batch)
    first, second = {"clothes": (2, 4), "shoes": (7, 9)}[condition]
    data = two_classes(open_data("idx:runs/data/fashion-mnist"), [first], [second], 1000, 10, seed)
    return data, tapped(data, partial(small_resnet8, 2, 1)), recipe.replace(lr=0.05, epochs=20)


def two_classes(data: Data, majority: Sequence[int], minority: Sequence[int], many: int, few: int, seed: int) -> Data:
    """A two-class task with the given number of training samples of each class; the test split stays whole."""
    generator = torch.Generator().manual_seed(seed)

    def among(labels: Tensor, classes: Sequence[int]) -> Tensor:
        return torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]

    def binary(split: Split, indices: Tensor) -> Split:
        subset = split.subset(indices.sort().values)
        labels = torch.isin(subset.labels, torch.tensor(minority)).long()
        return replace(subset, labels=labels, clean_labels=labels)

    def sample(indices: Tensor, count: int) -> Tensor:
        return indices[torch.randperm(len(indices), generator=generator)[:count]]

    train, test = data.train.labels, data.test.labels
    selected = torch.cat([sample(among(train, majority), many), sample(among(train, minority), few)])
    return replace(
        data,
        classes=("majority", "minority"),
        train=binary(data.train, selected),
        test=binary(data.test, torch.cat([among(test, majority), among(test, minority)])),
        validation=None,
        views=CropsAndFlips(),
    )


def tapped(data: Data, make: Callable[[], nn.Module]) -> Callable[[], Tapped]:
    """A factory of students that normalise their input by the training split's mean and standard deviation."""
    return lambda: Tapped(make(), *data.mean_std)


CONDITIONS = {
    "digits-16": "Digits, 602 and 8 images, batches of 16",
    "digits-64": "Digits, 602 and 8 images, batches of 64",
    "digits-256": "Digits, 602 and 8 images, batches of 256",
    "digits-balanced": "Digits, 602 and 602 images, batches of 64",
    "shoes": "Sneakers and ankle boots, 1,000 and 10 images, batches of 64",
    "clothes": "Pullovers and coats, 1,000 and 10 images, batches of 64",
}

EXPERIMENT = Experiment(
    name="final_bn",
    head="""
# Final batch normalisation and alternatives for a rare class (`final_bn`)

**Question.** Final batch normalisation (Kocaman, Shir, Baeck 2020) normalises the logits over the batch. The paper
reports that it raises the F1 of a minority class of 1 % of the training data, on a balanced test set, from 0.29 to 0.95
(VGG19 pre-trained on ImageNet, images of plant leaves). How does it compare, in networks trained from scratch, with
what else an expert would try? These are cross-entropy weighted by inverse class frequency, and *logit adjustment*: the
plain network, with the logarithm of the class frequencies of the training set subtracted from its logits at test time.

**Data and networks.** *Digits*: 0 to 4 against 5 to 9; an MLP 64-128-128-2; 40 epochs with a learning rate of 0.01.
*Fashion-MNIST*: two of its classes; a ResNet-8 with batch normalisation in its blocks; 20 epochs with a learning rate
of 0.05. Section titles say the number of training images of both classes. The test sets are about balanced and the same
for all seeds.

**Protocol.** SGD with Nesterov momentum 0.9, constant learning rate, no weight decay, no augmentation. Each seed draws
its own training samples; rows of one seed share them, initial weights and batches. Five seeds; fifteen with batches of
16, since the gain there varied most. No tuning, no model selection: evaluation is after the last epoch.

**Metrics.** *AUROC* ranks the test samples by the difference of their two logits, so it does not depend on the decision
threshold, as F1 does. A classifier that always predicts the minority has an F1 of about 67 %. *Confidence* is the mean
largest probability. In rows *removed at test*, the final layer is taken out of the trained network.
""",
    measure=run,
    rows=(
        "plain",
        "class-weighted",
        ADJUSTED,
        *list(NETWORKS)[2:],
        "final BN" + REMOVED,
        "final BN, no affine" + REMOVED,
    ),
    columns={
        "minority": Column("F1, minority"),
        "majority": Column("F1, majority"),
        "auroc": Column("AUROC"),
        "confidence": Column("confidence"),
        "ece": Column("ECE"),
    },
    baseline="plain",
    conditions=CONDITIONS,
    seeds=dict.fromkeys(CONDITIONS, range(5)) | {"digits-16": range(15)},
    tail="""
## What it shows

- On digits the layer as published raises the minority's F1 by 21 points with batches of 16, by 40 with 64, and hardly
  with 256: what matters is how many batches contain a minority sample. Batches of 16 were repeated with ten further
  seeds, which alone gave +20.4 ± 6.7; single seeds range from 10 to 38 points, so that a few seeds do not suffice.
- The network matters too. On the ResNet, which has batch normalisation in its blocks, the layer as published has no
  significant effect on the minority's F1; a difference of 20.5 points (sneakers and boots) or 4.9 points (pullovers and
  coats) would be detected with a power of 80 %. The paper's step from 0.29 to 0.95 is for a pre-trained VGG19 without
  batch normalisation.
- **Simple alternatives are better.** Logit adjustment, which needs no training, has the higher F1 of the minority in
  every imbalanced table. The class-weighted loss equals the layer with batches of 16 and is better elsewhere.
- Without gamma and beta the minority's F1 is higher and confidence is low, because logits of unit variance cannot be
  confident. Where features separate the classes badly (pullovers and coats), that F1 is about that of always predicting
  the minority, and the majority's F1 falls. With equal classes the network is far too underconfident, see its ECE.
- AUROC changes far less than F1, except with batches of 256: most of the gain is a shifted decision threshold.
- Removing the layer at test is unreliable: on digits the majority's F1 varies between seeds from 0 to 90 %, and most
  ResNets then predict the minority for nearly everything. Fold the layer into the classifier instead.
- With equal classes the layer adds about a point.

## What it does not show

Networks and images are small and training starts from scratch, the learning rate is the same for all rows, and a
minority of 8 or 10 samples makes the intervals wide.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
