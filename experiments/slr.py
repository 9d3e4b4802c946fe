"""Stochastic label refinery: are refined targets closer to human label distributions, and does the student gain?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.nets import mlp
from experiments.paired import Experiment, main
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, Grades, Split, SymmetricNoise, open_data
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.ordinal import expected_grade, grade_error, quadratic_kappa
from tutelage.methods.slr import mixed, refined
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.terms import CrossEntropy
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.training import Learner, Run

SHARE, SMOOTHING = 0.5, 0.1


@dataclass(frozen=True)
class Task:
    """Data, a network, its training, whether the classes are ordered, and label distributions by people if known."""

    data: Data
    student: Callable[[], Tapped]
    recipe: Recipe
    rounds: int = 2
    ordered: bool = False
    people: tuple[Tensor, Tensor] | None = None


def people(seed: int) -> Task:
    """CIFAR-10H: half of CIFAR-10's test split for training, half for testing, with people's answers to each image."""
    data = open_data("npz:runs/data/cifar10.npz")
    with np.load("runs/data/cifar10h.npz") as file:
        counts, labels = torch.from_numpy(file["counts"]).float(), torch.from_numpy(file["labels"])
    answers = (counts / counts.sum(1, keepdim=True))[data.test.index]
    if not torch.equal(labels[data.test.index].long(), data.test.labels):
        raise ValueError("cifar10h.npz and cifar10.npz have different test labels")
    pixels = data.test.inputs[torch.arange(len(data.test))].permute(0, 3, 1, 2).float()
    small = F.avg_pool2d(pixels, 4).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    whole = replace(data.test, inputs=small)
    first, last = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).view(2, -1)
    data = replace(data, train=whole.subset(first), validation=None, test=whole.subset(last), views=CropsAndFlips())
    return Task(
        data,
        lambda: Tapped(mlp(10, 192), *data.mean_std),
        Recipe(epochs=20, batch_size=128, lr=0.05, schedule="cosine"),
        rounds=1,
        people=(answers[first], answers[last]),
    )


def noisy_digits(seed: int) -> Task:
    """Digits with 30 % of the training labels wrong."""
    data = SymmetricNoise(0.3, seed)(replace(open_data("digits"), views=CropsAndFlips()))
    return Task(data, lambda: Tapped(mlp(10, 64), *data.mean_std), Recipe(epochs=30, batch_size=128, lr=0.1))


def grades(seed: int) -> Task:
    """Ordered grades of disagreeing annotators: quintiles of a score of 20 numbers plus noise."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2600, 20, generator=generator)
    first, second = torch.randn(20, 20, generator=generator), torch.randn(20, generator=generator)
    score = (inputs @ first / math.sqrt(20)).tanh() @ second
    score = (score - score.mean()) / score.std() + 0.5 * torch.randn(2600, generator=generator)
    labels = torch.bucketize(score, score.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])))
    pixels = (128 + 32 * inputs).round().clamp(0, 255).to(torch.uint8).view(-1, 4, 5, 1)
    train, test = (
        Split.of(pixels[part], labels[part], targets=Grades()) for part in (slice(None, 600), slice(600, None))
    )
    data = Data("grades", tuple("01234"), train, test)
    recipe = Recipe(epochs=20, batch_size=64, lr=0.05)
    return Task(data, lambda: Tapped(mlp(5, 20, 128), *data.mean_std), recipe, ordered=True)


def hard(run: Run, rounds: int) -> Tensor:
    """The labels."""
    return run.data.train.labels


def smoothed(run: Run, rounds: int) -> Tensor:
    """Label smoothing."""
    classes = run.data.num_classes
    return mixed(run.data.train.labels, torch.full((len(run.data.train), classes), 1 / classes), SMOOTHING)


def out_of_fold(run: Run, rounds: int) -> Tensor:
    """SLR's targets."""
    return refined(run, rounds=rounds, folds=5, share=SHARE, anchor="original")


def in_sample(run: Run, rounds: int) -> Tensor:
    """SLR's targets from a network trained on the samples that it predicts."""
    data = run.data
    for number in range(1, rounds + 1):
        model = run.student(number)
        run.fit(Learner(model, None, {"ce": CrossEntropy()}), data=data)
        targets = mixed(run.data.train.labels, run.predict(model, data.train).softmax(1), SHARE)
        data = replace(data, train=replace(data.train, labels=targets))
    return data.train.labels


TASKS = {"cifar10h": people, "digits": noisy_digits, "grades": grades}
TARGETS = {"plain": hard, "label smoothing 0.1": smoothed, "SLR": out_of_fold, "SLR in sample": in_sample}


def run(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """Compute the targets, train the student on them, and evaluate both."""
    task = TASKS[condition](seed)
    data = task.data
    training = Run(data, task.student, recipe=task.recipe, hardware=Hardware(device="cpu"), seed=seed)
    student = training.student()
    targets = TARGETS[row](training, task.rounds)
    train = replace(data.train, labels=targets)
    training.fit(Learner(student, None, {"ce": CrossEntropy()}), data=replace(data, train=train))
    logits = training.predict(student, data.test)
    metrics = {
        "accuracy": float(accuracy(logits, data.test.labels)),
        "nll": float(cross_entropy(logits, data.test.labels).mean()),
    }
    if task.ordered:
        grades = expected_grade(logits)
        metrics["kappa"] = float(quadratic_kappa(grades, data.test.labels))
        metrics["qwk"] = float(quadratic_kappa(logits.argmax(1), data.test.labels))
        metrics["grade error"] = float(grade_error(grades, data.test.labels))
    if task.people:
        metrics["people"] = float(cross_entropy(logits, task.people[1]).mean())
        if row != "plain":  # hard labels have no distribution over the other classes
            metrics["targets"] = float(cross_entropy(targets.log(), task.people[0]).mean())
            metrics["others"] = others(targets, task.people[0], data.train.labels)
    return metrics


def others(targets: Tensor, answers: Tensor, labels: Tensor) -> float:
    """Cross-entropy, in nats, of the targets' to the people's distribution over the classes other than the label."""
    other = 1.0 - F.one_hot(labels, targets.shape[1])
    shares = (other * targets) / (other * targets).sum(1, keepdim=True)
    weight = other * answers
    return float(-(weight * shares.clamp_min(1e-12).log()).sum() / weight.sum())


EXPERIMENT = Experiment(
    name="slr",
    head="""
# Stochastic label refinery: soft labels from out-of-fold predictions (`slr`)

**Question.** SLR (Fang, Yang, Ni 2020) replaces labels by predictions of networks that were not trained on the sample.
Does a student trained on the refined targets gain where labels are truly ambiguous, and are the targets closer to what
human annotators answer? The paper's text could not be read; its settings are inferred.

**Rows.** *plain*: the labels; the baseline. *label smoothing*: 0.1, spread evenly over all classes. *SLR*: five folds,
share a = 0.5 of the prediction. *SLR in sample*: the same with one network per round, trained on the very samples that
it then predicts.

**Networks and training.** MLPs with two hidden layers (256 units; 128 for the grades), SGD with Nesterov momentum 0.9
and weight decay 0.0005, no augmentation, no held-out split; evaluation after the last epoch. Rows of a seed share data,
initial weights and batches. Nothing was tuned.

**Grades** (synthetic). 20 Gaussian numbers, stored as pixels of a 4 x 5 image; a smooth score of them plus noise of
half its standard deviation, cut into quintiles. 600 training and 2,000 test samples, 20 epochs with batches of 64,
learning rate 0.05. The noise makes labels disagree as annotators do; it is also in the test labels. Ten seeds. *Kappa*
is quadratically weighted, and *error in grades* is the mean absolute error; both are those of the rounded expectation
of the grade, the decision rule of the task `ordinal`. *Kappa, argmax* and *test accuracy* are those of the largest
logit.

**CIFAR-10H.** 5,000 images of CIFAR-10's test split for training and the other 5,000 for testing, drawn by the seed,
reduced to 8 x 8 pixels for speed; 20 epochs with batches of 128, learning rate 0.05, cosine schedule. Three seeds.
About 50 people have labelled each image. *CE to people* is the cross-entropy to the distribution of their answers: of
the student's predictions on the test half, or of the targets on the training half (infinite for hard labels). *Other
classes* is the same for the distribution over the classes other than the label; an even distribution has ln 9 = 2.197.
Lower is better in both.

**Digits.** 1,437 training images, 30 % symmetric noise, 30 epochs with batches of 128, learning rate 0.1. Three seeds.
""",
    measure=run,
    rows=tuple(TARGETS),
    columns={
        "kappa": Column("kappa"),
        "qwk": Column("kappa, argmax"),
        "grade error": Column("error in grades", share=False, digits=3),
        "accuracy": Column("test accuracy"),
        "nll": Column("test NLL", share=False, digits=3),
        "people": Column("student: CE to people", share=False, digits=3),
        "targets": Column("targets: CE to people", share=False, digits=3),
        "others": Column("targets: other classes", share=False, digits=3),
    },
    baseline="plain",
    conditions={
        "grades": "Ordered grades with disagreeing annotators (synthetic), two rounds",
        "cifar10h": "CIFAR-10H at 8x8, one round",
        "digits": "Digits, 30 % symmetric noise, two rounds",
    },
    seeds={"grades": range(10), "cifar10h": range(3), "digits": range(3)},
    tail="""
## What it shows

- **On ordered grades SLR improves the probabilities, and kappa only under the argmax.** Test NLL falls by 0.052 and
  accuracy rises by 0.8 points on all ten seeds. Kappa of the argmax rises by 1.2 ± 0.4 points, also on all ten. But
  **decoding alone gives more**: the rounded expectation raises the kappa of the plain student from 78.6 to 80.1 %, and
  over that SLR gains +0.1 ± 0.3 (0.45 would be detected with a power of 80 %). The error in grades falls by
  0.007 ± 0.005. Label smoothing, which spreads probability to distant grades, loses 2.2 points.
- The variant in sample does as well: +0.4 ± 0.2 points of kappa. So out-of-fold prediction is not what helps here.
- **On CIFAR-10H, SLR does not do what it is meant to.** With a network that is right for 46 % of the images, its
  targets are further from people's answers than evenly smoothed labels. Their distribution over the other classes is
  worse than an even one: out-of-fold predictions are confident in classes that no annotator names. The student's
  predictions do come closer to people's answers than the plain student's, but label smoothing brings them closer still.
  Accuracy does not change significantly (a difference of 2.0 points would be detected with a power of 80 %).
- **On digits with noise** it is about as good as label smoothing, and no better. Its +2.1 points over plain training
  are not significant (4.7 would be detected).

## What it does not show

The paper's data (grading of retinal images) and networks; settings that are not inferred. A better network may do
better on CIFAR-10H, where there are three seeds, as on digits.
""",
)

if __name__ == "__main__":
    main(EXPERIMENT)
