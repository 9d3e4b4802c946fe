"""Abstention: a corrected teacher and an abstention output, with teachers of other images and of the same images.

python -m experiments.abstention
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.nets import mlp32, mlp256
from experiments.paired import Experiment, main
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import CropsAndFlips, Split, open_data
from tutelage.data.conditions import SymmetricNoise
from tutelage.data.configured import load_data
from tutelage.evaluation import abstain_probability, predict_roles, risk_coverage, selection_score
from tutelage.methods import find
from tutelage.models.surgery.abstain import ABSTAIN
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.runs.models import make_student
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.training import Learner, Run

COVERAGES = (1.0, 0.9, 0.8)
PAYOFFS = (2.2, 3.0, 4.0, 6.0, 9.0)

SETS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "per_class": 40, "epochs": 60, "batch_size": 32},
    "fashion": {"data": "idx:runs/data/fashion-mnist", "per_class": 100, "epochs": 12, "batch_size": 50},
}
STUDENTS = {"digits": "experiments.nets:mlp32", "fashion": "experiments.nets:small_resnet8"}
TEACHERS = {"digits": "experiments.nets:mlp256", "fashion": "experiments.nets:small_resnet8x4"}

BET = {"variant": "soft_bet", "warm_up": 0.0}
SAME_IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "hinton": ("hinton", {}),
    "soft targets alone": ("hinton", {"alpha": 1.0}),
    "adjusted soft targets alone": ("abstention", {"weight": 0.0}),
    "soft bet, o = 6": ("abstention", {**BET, "payoff": 6.0}),
    "soft bet, o = 6, warm-up": ("abstention", {**BET, "payoff": 6.0, "warm_up": 1 / 3}),
    "soft bet, o chosen": ("abstention", BET),
    "two-term, o = 2.2": ("abstention", {"payoff": 2.2, "warm_up": 0.0}),
    "two-term, o = 2.2, warm-up": ("abstention", {"payoff": 2.2, "warm_up": 1 / 3}),
}
"""The rows whose teacher is trained on the student's images and labels."""

OTHER_IMAGES: dict[str, Callable[[Run], Tapped]] = {
    "plain": find("plain"),
    "hinton, alpha 0.9": find("hinton"),
    "hinton": partial(find("hinton"), alpha=0.3),
    "soft targets and labels": lambda run: labels_and_soft_targets(run, 3.0),
    "adjusted soft targets alone": partial(find("abstention"), weight=0.0),
    "adjusted soft targets and labels": partial(find("abstention"), weight=3.0, warm_up=1.0),
    "two-term, o = 2.2, warm-up": partial(find("abstention"), weight=3.0),
}
"""The rows whose teacher is trained on other images, with wrong labels."""

ROWS = tuple(dict.fromkeys([*OTHER_IMAGES, *SAME_IMAGES]))
FIRST_SEED = 300  # of OTHER_IMAGES; separate from the seeds with which its settings were chosen
PER_CLASS, TEACHER_IMAGES = 15, 900
RECIPE = Recipe(epochs=60, batch_size=32, lr=0.05)
ON_CPU = Hardware(device="cpu", precision="float32", workers=0)
DIGITS = replace(open_data("digits"), views=CropsAndFlips())


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one student with the teacher of its seed and evaluate it on the test split."""
    if condition.startswith("other"):
        return with_teacher_of_other_images(condition, row, seed + FIRST_SEED)
    method, settings = SAME_IMAGES[row]
    config = config_of(condition, seed).replace(method=method, settings=settings)
    teacher = teacher_of(condition, seed)
    if row == "soft bet, o chosen":
        config = config.replace(settings={**settings, "payoff": chosen_payoff(config, teacher)})
    metrics = measured(trained(config, teacher), load_data(config).test)
    return metrics | {"payoff": config.settings["payoff"]} if "payoff" in config.settings else metrics


def with_teacher_of_other_images(condition: str, row: str, seed: int) -> dict[str, float]:
    """Train one student on a few images and evaluate it; its teacher was trained on other images."""
    student, _, _ = parts(DIGITS.train.labels, seed)
    few = replace(DIGITS, train=DIGITS.train.subset(student))
    teacher = expert(float(condition.partition("-")[2]), seed)
    make = partial(Run, few, lambda: Tapped(mlp32(10, 1), *few.mean_std), recipe=RECIPE, hardware=ON_CPU, seed=seed)
    model = OTHER_IMAGES[row](make() if row == "plain" else make([teacher]))
    return measured(model, DIGITS.test) | {"teacher": measured(teacher, few.train)["response 100%"]}


def parts(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The indices of the student's images, of the teacher's, and of the rest, which the settings were chosen on."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    student = torch.cat([order[labels[order] == label][:PER_CLASS] for label in range(int(labels.max()) + 1)])
    others = order[~torch.isin(order, student)]
    return student, others[:TEACHER_IMAGES], others[TEACHER_IMAGES:]


@cache
def expert(rate: float, seed: int) -> Tapped:
    """The teacher of all rows of a seed, trained on other images, a share of whose labels is wrong."""
    _, others, _ = parts(DIGITS.train.labels, seed)
    data = SymmetricNoise(rate, seed)(replace(DIGITS, train=DIGITS.train.subset(others)))
    recipe = RECIPE.replace(epochs=30)
    model: Tapped = find("plain")(
        Run(data, lambda: Tapped(mlp256(10, 1), *data.mean_std), recipe=recipe, hardware=ON_CPU, seed=seed)
    )
    return model


def labels_and_soft_targets(run: Run, weight: float) -> Tapped:
    """weight CE(z, y) + T^2 KL with T = 4: the two-term loss without adjustment and abstention output."""
    student = run.student()
    terms = {"ce": weight * CrossEntropy(), "kd": 1.0 * SoftTargets(4.0)}
    run.fit(Learner(student, run.frozen(*run.teachers()), terms))
    return student


def config_of(condition: str, seed: int) -> Config:
    """The configuration of a plain student of this condition."""
    name, noise = condition.split("-")
    common: dict[str, Any] = {"noise": noise, "seed": seed, "augment": False, "validation": 0.0, "device": "cpu"}
    return Config(**SETS[name], **common, student=STUDENTS[name])


def trained(config: Config, *teachers: Tapped) -> Tapped:
    """Train the student of a configuration by its method; nothing is written to disk."""
    data = load_data(config)
    run = Run(
        data,
        lambda: make_student(config.student, data),
        teachers,
        recipe=config.recipe(),
        hardware=config.hardware(),
        seed=config.seed,
    )
    return find(config.method)(run, **config.settings)


@cache
def teacher_of(condition: str, seed: int) -> Tapped:
    """The teacher of all rows of a seed, trained on the same images and labels as the students."""
    return trained(config_of(condition, seed).replace(student=TEACHERS[condition.partition("-")[0]]))


def chosen_payoff(config: Config, teacher: Tapped) -> float:
    """The payoff with the lowest error on a held-out fifth of the training split, whose labels are as noisy.

    The error is the sum over ``COVERAGES``, ranked by softmax response; the smallest payoff wins a tie. The teacher
    was trained on that fifth too.
    """

    def error(payoff: float) -> float:
        trial = config.replace(settings={**config.settings, "payoff": payoff}, validation=0.2)
        held_out = load_data(trial).validation
        assert held_out is not None
        metrics = measured(trained(trial, teacher), held_out)
        return sum(metrics[f"response {coverage:.0%}"] for coverage in COVERAGES)

    return min(PAYOFFS, key=error)


def measured(model: Tapped, split: Split) -> dict[str, float]:
    """Errors at each coverage by softmax response and, for a network that can abstain, by abstention probability."""
    roles = ("logits", *(role for role in (ABSTAIN,) if role in model.taps))
    outputs = predict_roles(model, split, roles, device="cpu").double()
    if len(roles) == 1:
        return by_score("response", outputs, split.labels)
    logits, abstain = outputs[:, :-1], outputs[:, -1:]
    return {
        **by_score("response", logits, split.labels),
        **by_score("whole", logits, split.labels, outputs.log_softmax(1)[:, :-1].amax(1)),
        **by_score("abstention", logits, split.labels, selection_score(logits, abstain)),
        "abstain_probability": float(abstain_probability(logits, abstain).mean()),
    }


def by_score(name: str, logits: Tensor, labels: Tensor, score: Tensor | None = None) -> dict[str, float]:
    """The errors at ``COVERAGES`` of samples ranked by this score, and the excess area."""
    curve = risk_coverage(logits, labels, score)
    errors = dict(
        zip((f"{name} {coverage:.0%}" for coverage in COVERAGES), curve.risk_at(COVERAGES).tolist(), strict=True)
    )
    return errors | {f"{name} excess": float(curve.excess_area)}


HEAD = """
# Corrected teacher and abstention (`abstention`)

**Question.** Does it help to correct the teacher's wrong predictions, and to give the student an extra output for
abstaining (Xu, Pu, Zhao 2020)? The paper's abstract proposes both; its full text could not be read. The correction can
only matter where the teacher contradicts the student's labels, so the first table has a teacher that was trained on
other images, with wrong labels. A teacher of the same images memorises their labels and hardly ever contradicts them.

**Metrics.** *Error* is the test error of all predictions. *Error at 90 %* and *at 80 %* are those of the 90 % or 80 %
of the test images with the highest confidence. Two confidences of the same network are compared: *response*, the
largest softmax probability of the m classes, and *p_a*, where images with the lowest abstention probability p_a rank
first. *Excess AURC* is the area under the risk-coverage curve minus that of a perfect ranking. Lower is better in each.

**Rows.**

- *plain*: cross-entropy, no teacher. *hinton*: Hinton's distillation, the baseline; with a teacher of other images its
  alpha is 0.3, which was chosen. *hinton, alpha 0.9* has the default.
- *soft targets alone*: Hinton's loss with alpha = 1, T = 4. *soft targets and labels*: 3 CE + T^2 KL.
- *adjusted soft targets alone*: the teacher's probabilities are corrected where its prediction contradicts the training
  label (`weight=0`). The abstention output is not trained. *adjusted soft targets and labels*: the same plus 3 CE
  (`weight=3`, `warm_up=1`).
- *two-term*: corrected soft targets plus the gambler's loss on the labels. Its weight is 3 with a teacher of other
  images and 1, the default, with one of the same images.
- *soft bet*: the gambler's loss on the corrected teacher's probabilities, with payoff o. *o chosen*: the payoff of 2.2,
  3, 4, 6, 9 with the lowest error on a held-out fifth of the training set, whose labels are as noisy. *warm-up*: the
  first third of the run trains without the abstention output.

**Teacher of other images.** Digits: the student has 150 training images (15 per class) with correct labels, its teacher
900 others. An MLP with a hidden layer of 256 teaches one with 32; 60 epochs for the student and 30 for the teacher,
batch size 32. The other 387 training images were used to choose settings, with three other seeds and the teacher with
wrong labels: four values of *plain*'s learning rate (which made no difference, so that it stays 0.05), four of alpha,
three of the weight of *two-term*. *soft targets and labels* and *adjusted soft targets and labels* have the weight
chosen for *two-term*, from which they differ in one part each. Seeds, and thereby splits, are paired.

**Teacher of the same images.** Digits: 400 training images (40 per class); networks and student's recipe as above.
Fashion-MNIST: 1,000 training images (100 per class), 10,000 test images; a ResNet-8 with channels 32-64-128 teaches one
with 8-16-32, first convolutions with stride 4; 12 epochs, batch size 50. The teacher is trained on the same labels as
the students, wrong ones included. Three seeds; nothing was tuned except *o chosen*.

**Protocol.** SGD with a learning rate of 0.05, no augmentation, evaluation after the last epoch. Test labels are clean.
Runs of one seed differ only in the loss.
"""
TAIL = """
## What it shows

- **With a teacher of other images, neither correction nor abstention helps; the weight of the labels matters.** The
  teacher contradicts the student's labels on 16 % of the student's images. The two-term loss has 6.3 ± 1.7 points less
  error than Hinton's loss with its default alpha of 0.9, and 5.7 ± 1.7 at 90 % coverage: that alpha trusts this teacher
  too much. But with the chosen alpha of 0.3 the difference is gone, and so it is without correction and abstention
  output (*soft targets and labels*): in that loss the correction changes the error by +0.2 ± 0.4 points, and both
  together by +0.3 ± 0.4; at 90 % coverage by 0.0 ± 0.2 and 0.0 ± 0.3.
- Corrected soft targets alone, without the labels, have 7.4 ± 2.0 points more error than *plain*. No row with this
  teacher has less error than *plain* by an interval that excludes 0.
- **With a teacher of the same images, correcting it changes almost nothing.** The teacher has memorised its labels,
  wrong ones too, so that its predictions seldom contradict them (seed 0, 40 % wrong: its prediction equals the training
  label for 99 % of the digits and 93 % of the Fashion-MNIST images). The error of corrected soft targets minus that of
  uncorrected ones is 0.4 ± 1.6 points on digits and 0.6 ± 2.5 on Fashion-MNIST.
- **Ranking by p_a is worse than ranking by the softmax response of the same network**: its excess AURC is larger in
  each run with a soft bet or the two-term loss that did not collapse.
- **Without a warm-up, the network may abstain from everything.** The soft bet collapsed in 5 of 6 runs with o = 6,
  although its teachers were confident (seed 0: mean largest probability 0.86 and 0.74, far above 1/6). The two-term
  loss left p_a at 100 % on Fashion-MNIST, where it ranks nothing.
- With a teacher of the same images and a warm-up, both variants have about a point less error than *hinton* on
  Fashion-MNIST. On digits the two-term loss with a warm-up has 3 to 5 points more. There the soft bet's gain differs
  from 0 only with the chosen payoff (9 on every seed, the largest candidate; no warm-up), and only at 90 and 80 %
  coverage.

## What it does not show

- Small effects: see the sentence below each table. About one interval in twenty excludes 0 by chance.
- The paper's networks and data (ResNet-50 and ResNet-18 on CIFAR-10, among others), which were not run.
- Teachers whose errors are systematic rather than due to random labels.
"""

SAME = ("digits-0.4", "fashion-0.4")

EXPERIMENT = Experiment(
    name="abstention",
    head=HEAD,
    measure=run,
    rows=ROWS,
    columns={
        "response 100%": Column("error"),
        "response 90%": Column("error at 90 %, response"),
        "response 80%": Column("error at 80 %, response"),
        "abstention 90%": Column("error at 90 %, p_a"),
        "abstention 80%": Column("error at 80 %, p_a"),
        "response excess": Column("excess AURC x 100, response", digits=2),
        "abstention excess": Column("excess AURC x 100, p_a", digits=2),
        "abstain_probability": Column("mean p_a"),
        "payoff": Column("o", share=False),
    },
    baseline="hinton",
    conditions={
        "other-0.4": "Teacher of other images, 40 % of its labels wrong",
        "digits-0.4": "Teacher of the same images: digits, 40 % of the labels wrong",
        "fashion-0.4": "Teacher of the same images: Fashion-MNIST, 40 % of the labels wrong",
    },
    seeds={"other-0.4": range(8)} | dict.fromkeys(SAME, range(3)),
    skip=frozenset(
        [("other-0.4", row) for row in ROWS if row not in OTHER_IMAGES]
        + [(condition, row) for condition in SAME for row in ROWS if row not in SAME_IMAGES]
        + [("fashion-0.4", "soft bet, o chosen")]
    ),
    tail=TAIL,
)

if __name__ == "__main__":
    main(EXPERIMENT)
