"""All losses beside the nine methods, with equal budgets, on parts of CIFAR-10 and CIFAR-100 under strong teachers.

    python -m experiments.losses cifar10
    python -m experiments.losses cifar100

``runs/data`` must contain ``cifar10.npz`` and ``cifar10-resnet56.safetensors``, and for ``cifar100`` all of CIFAR-100
as ``cifar100.npz``; its teacher is trained first, and its weights are stored next to the lines.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tutelage
from experiments.cifar10 import (
    CACHE,
    COMMON,
    DATA,
    LR,
    STUDENT,
    TUNED,
    TUNING,
    CifarExperiment,
    best_trial,
    numbers_of,
    split,
)
from experiments.cifar10 import TRIALS as NINE
from experiments.paired import RESULTS, Experiment, main
from tutelage.report.markdown import Column

EPOCHS, TRIAL_EPOCHS, SEEDS = 30, 10, 5
TEACHER = "experiments.nets:resnet20_half"
FACTORS = (0.25, 1.0, 4.0)
TRIALS: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        **NINE,
        "dkd": [{"beta": 8.0 * factor} for factor in FACTORS],
        "dist": [{"beta": 0.5 * factor, "gamma": 0.5 * factor} for factor in FACTORS],
        "logit_standardization": [{"weight": 9.0 * factor} for factor in FACTORS],
        "mlkd": [{"instance": factor, "correlations": factor} for factor in FACTORS],
        "rld": [{"beta": 8.0 * factor} for factor in FACTORS],
        "crd, memory": [{"weight": 0.8 * factor} for factor in FACTORS],
        "crd, batch": [{"weight": 0.8 * factor, "negatives": "batch"} for factor in FACTORS],
        "reviewkd": [{"weight": factor} for factor in FACTORS],
        "pkt": [{"weight": 470.0 * factor} for factor in FACTORS],
        "vid": [{"weight": factor} for factor in FACTORS],
        "nst": [{"weight": 5.0 * factor} for factor in FACTORS],
        "cc": [{"weight": 30.0 * factor} for factor in FACTORS],
        "ft": [{"weight": 10.0 * factor} for factor in FACTORS],
        "ofd": [{"weight": 0.001 * factor} for factor in FACTORS],
        "ab": [{"margin": margin} for margin in (0.5, 1.0, 2.0)],
        "tf_kd": [{"alpha": alpha} for alpha in (0.1, 0.5, 0.9)],
        "born_again": [{"alpha": alpha} for alpha in (0.25, 0.5, 0.75)],
    }
)
"""Three for each row: a quarter of the weight of its loss, the weight, and four times it, unless it has no weight."""


@dataclass(frozen=True)
class Part:
    """A part of a data set.

    Attributes:
        title: what it is.
        source: its file in ``runs/data``.
        per_class: the number of training images of each class.
        teacher: the pretrained teacher as ``MODEL@WEIGHTS``; unless given, one is trained on all training images.
        teacher_text: the teacher, for the page.
    """

    title: str
    source: str
    per_class: int
    teacher: str | None
    teacher_text: str
    tail: str = ""


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "cifar10": Part(
            "a fifth of CIFAR-10",
            "cifar10.npz",
            1000,
            f"resnet56@{DATA / 'cifar10-resnet56.safetensors'}",
            "a ResNet-56 with a test accuracy of 93.4 %",
        ),
        "cifar100": Part(
            "a fifth of CIFAR-100",
            "cifar100.npz",
            100,
            None,
            "a ResNet-20 whose first convolution has stride 2, too,",
        ),
    }
)


def run(name: str, condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """Train the teacher or one student and return its metrics."""
    part = PARTS[name]
    data = f"npz:{DATA / part.source}"
    fields: dict[str, Any] = {**COMMON, "seed": seed, "out": folder, "lr": LR, "validation": 0.0, "epochs": EPOCHS}
    if row == "teacher":
        result = tutelage.train(TEACHER, data, **{**fields, "views": None})
        shutil.copy(folder / "student.safetensors", teacher_file(name))
        return numbers_of(result)
    fields["per_class"] = part.per_class
    trials = TRIALS[row]
    if condition.startswith("tuning"):
        fields |= {**TUNED, "epochs": TRIAL_EPOCHS, **split(trials[int(condition[-1])])}
    else:
        fields |= split(trials[best_trial(EXPERIMENTS[name].file, row, len(trials))])
    if row == "plain":
        return numbers_of(tutelage.train(STUDENT, data, **fields))
    fields |= {**CACHE, "teacher_cache": str(Path("runs") / f"losses-{name}" / "teacher-outputs")}
    teacher = part.teacher or f"{TEACHER}@{teacher_file(name)}"
    return numbers_of(tutelage.distill(teacher, STUDENT, data, method=row.partition(",")[0], **fields))


def teacher_file(name: str) -> Path:
    """The weights of the teacher that was trained for a part."""
    return RESULTS / f"losses-{name}" / "teacher.safetensors"


HEAD = """
# The losses of the field, on {title}

**Question.** How much do the losses of the field's collections improve a small student, with equal budgets for all?

**Data.** {per_class:,} training images of each class, chosen by the seed, and all 10,000 test images, which are
evaluated once. Random crops and flips, with four fixed variants of each image.

**Networks.** The student is a ResNet-8 whose first convolution has stride 2 (75 thousand parameters); the teacher is
{teacher} trained on all 50,000 training images: it knows more images than the student.

**Training.** {epochs} epochs with batches of 128, SGD with Nesterov momentum 0.9, weight decay 0.0005, two epochs of
warm-up and a cosine schedule. Evaluation is after the last epoch.

**Tuning.** Each row has three trials of {trial_epochs} epochs, compared by accuracy on a held-out tenth of the training
data, with a seed that is not reported: the plain student tries learning rates; a method, at a learning rate of {lr}, a
quarter, once and four times the default weight of its loss, or other parameters where it has no such weight. A method
has the label loss and its own; Hinton's loss is not added, unless it is part of the method (`ab`).

**Rows.** *plain* is the baseline, `hinton` to `one` are the nine methods of the study. *Forward passes* are those of
all networks in training, cached ones not counted; `tf_kd`, `dml`, `one` and `born_again` do not use the teacher.
"""


def experiment(name: str) -> Experiment:
    """The experiment of a part: its teacher, trials, then the rows."""
    part = PARTS[name]
    tuning = [f"tuning {number}" for number in range(3)]
    teachers: dict[str, tuple[int, ...]] = {} if part.teacher else {"teacher": (TUNING,)}
    return CifarExperiment(
        name=f"losses-{name}",
        head=HEAD.format(
            title=part.title,
            per_class=part.per_class,
            teacher=part.teacher_text,
            epochs=EPOCHS,
            trial_epochs=TRIAL_EPOCHS,
            lr=LR,
        ),
        measure=functools.partial(run, name),
        rows=(*([] if part.teacher else ["teacher"]), *TRIALS),
        columns={
            "accuracy": Column("test accuracy", digits=2),
            "ece": Column("calibration error", share=False, digits=3),
            "nll": Column("log loss", share=False),
            "forward_passes": Column("forward passes, millions", share=False),
        },
        baseline="plain",
        conditions={**dict.fromkeys([*teachers, *tuning], ""), "test": "Test images"},
        seeds={**teachers, **dict.fromkeys(tuning, (TUNING,)), "test": tuple(range(SEEDS))},
        skip=frozenset(
            {(condition, "teacher") for condition in (*tuning, "test")}
            | {("teacher", row) for row in (TRIALS if teachers else ())}
        ),
        tail=part.tail,
        module="losses",
        arguments=name,
    )


EXPERIMENTS = {name: experiment(name) for name in PARTS}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    options, remaining = parser.parse_known_args()
    teacher_file(options.part).parent.mkdir(exist_ok=True)
    main(EXPERIMENTS[options.part], remaining)
