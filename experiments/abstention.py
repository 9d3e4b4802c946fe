"""Abstention: a corrected teacher and an abstention output, compared with Hinton's soft targets at three coverages.

python -m experiments.abstention
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.paired import Experiment, main
from tutelage.config import Config
from tutelage.data import Split
from tutelage.data.configured import load_data
from tutelage.evaluation import abstain_probability, predict_roles, risk_coverage, selection_score
from tutelage.methods import find
from tutelage.models.surgery.abstain import ABSTAIN
from tutelage.models.tapped import Tapped
from tutelage.report.markdown import Column
from tutelage.runs.models import make_student
from tutelage.training.run import Run

COVERAGES = (1.0, 0.9, 0.8)
PAYOFFS = (2.2, 3.0, 4.0, 6.0, 9.0)

SETS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "per_class": 40, "epochs": 60, "batch_size": 32},
    "fashion": {"data": "idx:runs/data/fashion-mnist", "per_class": 100, "epochs": 12, "batch_size": 50},
}
STUDENTS = {"digits": "experiments.nets:mlp32", "fashion": "experiments.nets:small_resnet8"}
TEACHERS = {"digits": "experiments.nets:mlp256", "fashion": "experiments.nets:small_resnet8x4"}

BET = {"variant": "soft_bet", "warm_up": 0.0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
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


def run(condition: str, row: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one student with the teacher of its seed and evaluate it on the test split."""
    method, settings = ROWS[row]
    config = config_of(condition, seed).replace(method=method, settings=settings)
    teacher = teacher_of(condition, seed)
    if row == "soft bet, o chosen":
        config = config.replace(settings={**settings, "payoff": chosen_payoff(config, teacher)})
    metrics = measured(trained(config, teacher), load_data(config).test)
    return metrics | {"payoff": config.settings["payoff"]} if "payoff" in config.settings else metrics


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
    """The teacher of all rows of a seed, trained on the same labels as the students."""
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
abstaining (Xu, Pu, Zhao 2020)? The paper's abstract proposes both; its full text could not be read.

**Metrics.** *Error* is the test error of all predictions. *Error at 90 %* and *at 80 %* are those of the 90 % or 80 %
of the test images with the highest confidence. Two confidences of the same network are compared: *response*, the
largest softmax probability of the m classes, and *p_a*, where images with the lowest abstention probability p_a rank
first. *Excess AURC* is the area under the risk-coverage curve minus that of a perfect ranking. Lower is better in each.

**Rows.**

- *plain*: cross-entropy, no teacher. *hinton*: Hinton's distillation, the baseline.
- *soft targets alone*: Hinton's loss with alpha = 1, T = 4.
- *adjusted soft targets alone*: the same, with the teacher's probabilities corrected where its prediction contradicts
  the training label (`weight=0`). The abstention output is not trained.
- *soft bet*: the gambler's loss on the corrected teacher's probabilities, with payoff o. *o chosen*: the payoff of 2.2,
  3, 4, 6, 9 with the lowest error on a held-out fifth of the training set, whose labels are as noisy. *warm-up*: the
  first third of the run trains without the abstention output.
- *two-term*: corrected soft targets plus the gambler's loss on the labels.

**Data and networks.** Digits: 400 training images (40 per class), 360 test images; an MLP with a hidden layer of 256
teaches one with 32; 60 epochs, batch size 32. Fashion-MNIST: 1,000 training images (100 per class), 10,000 test images;
a ResNet-8 with channels 32-64-128 teaches one with 8-16-32, first convolutions with stride 4; 12 epochs, batch size 50.

**Protocol.** SGD with a learning rate of 0.05, no augmentation, evaluation after the last epoch. The teacher is trained
on the same labels as the students, wrong ones included. Test labels are clean. Three seeds; runs of one seed differ
only in the loss.
"""
TAIL = """
## What it shows

- With correct labels no row beats Hinton's soft targets at any coverage.
- **Correcting the teacher changes almost nothing.** The teacher has memorised its labels, wrong ones too, so that its
  predictions seldom contradict them (seed 0, 40 % wrong: its prediction equals the training label for 99 % of the
  digits and 93 % of the Fashion-MNIST images). On Fashion-MNIST with wrong labels, uncorrected *soft targets alone*
  have half a point less error than corrected ones.
- **Ranking by p_a is worse than ranking by the softmax response of the same network**: of the 46 runs with a soft bet
  or the two-term loss that did not collapse, 45 have a larger excess AURC by p_a.
- **Without a warm-up, the network may abstain from everything.** With wrong labels, the soft bet collapsed in 5 of 6
  runs with o = 6, although its teachers were confident (seed 0: mean largest probability 0.86 and 0.74, far above 1/6).
  The two-term loss left p_a at 100 % on Fashion-MNIST, where it ranks nothing. With correct labels neither happened.
- With wrong labels and a warm-up, both variants have about a point less error than *hinton* on Fashion-MNIST. On digits
  the two-term loss with a warm-up has 3 to 5 points more. There the soft bet's gain differs from 0 only with the chosen
  payoff (9 on every seed, the largest candidate; no warm-up), and only at 90 and 80 % coverage.

## What it does not show

- Small effects. With three seeds, the smallest difference in error (at full coverage) that a paired t-test would detect
  with a power of 80 % is 0.5 to 1.9 points with correct labels and 1.2 to 8.2 points with wrong ones, for the rows that
  do not collapse and whose interval includes 0.
- Certainty of single results: about one interval in twenty excludes 0 by chance.
- The paper's networks and data (ResNet-50 and ResNet-18 on CIFAR-10, among others), which were not run.
- A teacher trained on other labels than the students: its predictions would disagree with those labels more often.
"""

EXPERIMENT = Experiment(
    name="abstention",
    head=HEAD,
    measure=run,
    rows=tuple(ROWS),
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
        "digits-0": "Digits, correct labels",
        "digits-0.4": "Digits, 40 % of the labels wrong",
        "fashion-0": "Fashion-MNIST, correct labels",
        "fashion-0.4": "Fashion-MNIST, 40 % of the labels wrong",
    },
    seeds=3,
    skip=frozenset((condition, "soft bet, o chosen") for condition in ("digits-0", "fashion-0", "fashion-0.4")),
    tail=TAIL,
)

if __name__ == "__main__":
    main(EXPERIMENT)
