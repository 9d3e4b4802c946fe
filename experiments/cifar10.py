"""The study on all of CIFAR-10, at the largest size that two cores can run: one question per command.

    python -m experiments.cifar10 clean --jobs 2
    python -m experiments.cifar10 noise --jobs 2
    python -m experiments.cifar10 imbalance --jobs 2
    python -m experiments.cifar10 human --jobs 2
    python -m experiments.cifar10 gap --jobs 2
    python -m experiments.cifar10 clean --hours          # only measure, and print how long each row takes

The runs of a question are the lines of ``docs/results/cifar10-QUESTION.jsonl``; a run with a line is not repeated, on
any machine. Next to the lines are the weights of the teachers of noisy or imbalanced labels, which are trained first,
and the training curves of the plain student. A stopped run resumes from its folder below ``runs/cifar10-QUESTION``. The
outputs of the teachers, feature maps too, are cached there (about 6 GB).

``runs/data`` must contain ``cifar10.npz`` (all of CIFAR-10), ``cifar10-resnet56.safetensors`` and, for ``gap``,
``cifar10-resnet20.safetensors`` (the teachers of correct labels) and, for ``human``, ``cifar10n-human-labels.npz``.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import tutelage
from experiments.paired import RESULTS, Experiment, main
from tutelage.config import Hardware
from tutelage.errors import TutelageError
from tutelage.report.markdown import Column
from tutelage.studies.functions import FunctionRun, read_lines
from tutelage.training.hardware import resolve

DATA = Path("runs") / "data"
STUDENT, OWN_TEACHER = "experiments.nets:resnet8_half", "experiments.nets:resnet20_half"
SEEDS, TUNING = (0, 1, 2), 100
COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "batch_size": 128,
        "schedule": "cosine",
        "warmup": 2.0,
        "views": 4,
        "device": "cpu",
        "workers": 0,
    }
)
CACHE: Mapping[str, Any] = MappingProxyType({"teacher_cache_dtype": "bfloat16"})
TUNED: Mapping[str, Any] = MappingProxyType({"warmup": 1.0, "validation": 0.1})

LR = 0.1
TRIALS: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        "plain": [{"lr": 0.05}, {"lr": 0.1}, {"lr": 0.2}],
        "hinton": [{"alpha": 0.9}, {"alpha": 0.5}, {"alpha": 0.9, "temperature": 10.0}],
        "bss": [{"share": 0.25}, {"share": 0.125}, {"share": 0.25, "steps": 5}],
        "fitnet": [{"beta": 0.25}, {"beta": 1.0}, {"beta": 4.0}],
        "fsp": [{"init_lr": 0.03}, {"init_lr": 0.1}, {"init_lr": 0.3}],
        "at": [{"beta": 60.0}, {"beta": 250.0}, {"beta": 1000.0}],
        "sp": [{"gamma": 75.0}, {"gamma": 300.0}, {"gamma": 1200.0}],
        "rkd": [{"distance": factor * 10.0, "angle": factor * 20.0} for factor in (0.25, 1.0, 4.0)],
        "dml": [{"weight": 0.25}, {"weight": 1.0}, {"weight": 4.0}],
        "one": [{"temperature": 1.0}, {"temperature": 3.0}, {"ramp": 0.0}],
    }
)
"""Three for each row: learning rates for the plain student, its own parameters for a method."""


@dataclass(frozen=True)
class Question:
    """One question of the study.

    Attributes:
        title: the title of its page.
        teacher: the pretrained teacher; unless given, one is trained on the same labels for each seed.
        fields: run fields in addition to ``COMMON``.
        epochs: the length of a run. A trial takes a quarter of it.
        images: the number of training images.
        tail: what the results show, the end of its page.
    """

    title: str
    teacher: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 20
    images: int = 50_000
    tail: str = ""


IMBALANCE = """
## What it shows

- **Five methods improve the student**: similarity preservation (`sp`) by 3.6 points, `rkd` 2.9, `at` 2.7, `bss` 2.6 and
  Hinton's loss 1.9. The interval of each excludes 0, but with three seeds none is significant after Holm's correction
  for nine methods.
- **Calibration is better with every method**, by 0.02 to 0.05; only the interval of `fsp` includes 0.
- **`fsp` and `dml` are worse than plain training**, by 2.4 and 2.8 points: not every method helps.

## What it does not show

- Whether `fitnet` helps: its seeds differ by 3.6 points. `one` equals plain training within its interval.
- A gain in the worst class: all intervals include 0.
- What a longer tuning would give: the held-out tenth has 866 images with the same imbalance, so that trials are
  compared by frequent classes, and trials are short. Teachers and trials ran in bfloat16, all final runs in float32.
"""

CLEAN = """
## What it shows

- **The student has 80.4 % without a teacher**, and eight methods change that by a point at most. `sp` (+0.9) and
  Hinton's loss (+0.7) are better with intervals that exclude 0, though not after Holm's correction; Hinton's loss also
  in the worst class (+2.5 points). The means of `fitnet`, `fsp`, `dml` and `rkd` are below plain training.
- `bss` is not finished. Its first seed has 81.5 %, 1.5 points more than plain training, at six times the time.
- **Two methods calibrate badly**: the calibration error is 0.140 with Hinton's loss, whose trials chose a temperature
  of 10, and 0.088 with `fitnet`, against 0.023 without a teacher.

## What it does not show

- What the methods gain at the learning rate of the plain student. Its trials chose 0.2 (72.3 % held-out accuracy; 69.1
  at 0.1), and could have gained from more; the methods have 0.1 throughout. So the plain student is a strong baseline.
- What a longer schedule would give: 20 epochs are a tenth of the usual length, and trials had 5.
"""

HUMAN = f"human:{DATA / 'cifar10n-human-labels.npz'}:worst"
QUESTIONS: Mapping[str, Question] = MappingProxyType(
    {
        "clean": Question("correct labels", "resnet56", tail=CLEAN),
        "noise": Question("40 % symmetric label noise", fields={"noise": "0.4"}),
        "imbalance": Question(
            "power-law class imbalance, gamma 0.2",
            fields={"imbalance": "powerlaw:0.2"},
            epochs=30,
            images=8_662,
            tail=IMBALANCE,
        ),
        "human": Question('human labels, CIFAR-10N "worst"', fields={"noise": HUMAN}),
        "gap": Question("correct labels, a smaller teacher", "resnet20"),
    }
)


def run(question: str, condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
    """Train one teacher or student and return its metrics."""
    settings = QUESTIONS[question]
    fields: dict[str, Any] = {**COMMON, **settings.fields, "seed": seed, "out": folder, "lr": LR, "validation": 0.0}
    fields["epochs"] = settings.epochs
    data = f"npz:{DATA / 'cifar10.npz'}"
    if row == "teacher":
        result = tutelage.train(OWN_TEACHER, data, **{**fields, "views": None})
        shutil.copy(folder / "student.safetensors", teacher_file(question, seed))
        return numbers_of(result)
    if condition.startswith("tuning"):
        fields |= {**TUNED, "epochs": settings.epochs // 4, **split(TRIALS[row][int(condition[-1])])}
    else:
        fields |= split(TRIALS[row][best_trial(EXPERIMENTS[question].file, row, len(TRIALS[row]))])
    if row == "plain":
        result = tutelage.train(STUDENT, data, **fields)
        if condition == "test":
            keep_curve(result.history, curve_file(question, seed))
    else:
        fields |= {**CACHE, "teacher_cache": str(Path("runs") / f"cifar10-{question}" / "teacher-outputs")}
        result = tutelage.distill(teacher_of(question, seed), STUDENT, data, method=row, **fields)
    return numbers_of(result)


def split(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a trial: the learning rate is a field of its own, everything else a setting of the method."""
    settings = {name: value for name, value in trial.items() if name != "lr"}
    return {name: value for name, value in trial.items() if name == "lr"} | ({"settings": settings} if settings else {})


def teacher_file(question: str, seed: int) -> Path:
    """The weights of a teacher that was trained for a question."""
    return RESULTS / f"cifar10-{question}" / f"teacher-{seed}.safetensors"


def teacher_of(question: str, seed: int) -> str:
    """The teacher of a question's students, as ``MODEL@WEIGHTS``."""
    pretrained = QUESTIONS[question].teacher
    if pretrained is None:
        return f"{OWN_TEACHER}@{teacher_file(question, seed)}"
    return f"{pretrained}@{DATA / f'cifar10-{pretrained}.safetensors'}"


def curve_file(question: str, seed: int) -> Path:
    """The training curve of a plain student."""
    return RESULTS / f"cifar10-{question}" / f"plain-{seed}.json"


def keep_curve(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Store the loss and the accuracy on the training data in each epoch: two lists of numbers."""
    records = [next(iter(epoch["learners"].values())) for epoch in history]
    curve = {name: [round(record[name], 5) for record in records] for name in ("ce", "train_accuracy")}
    file.write_text(json.dumps(curve) + "\n", encoding="utf-8")


def best_trial(file: Path, row: str, trials: int) -> int:
    """The number of the trial of a row with the best accuracy on held-out training data.

    Args:
        file: the lines of an experiment with the conditions ``tuning 0``, ``tuning 1``, and so on.
        row: the row.
        trials: how many trials it has.

    Raises:
        TutelageError: a trial has not been run.
    """
    scores = {
        int(line["condition"][-1]): line["measured"]["validation_accuracy"]
        for line in read_lines(file)
        if line["row"] == row and line["condition"].startswith("tuning")
    }
    if len(scores) < trials:
        raise TutelageError(f"{row} is not tuned: run its conditions 'tuning 0' to 'tuning {trials - 1}' first")
    return max(scores, key=lambda number: scores[number])


def numbers_of(result: tutelage.Result) -> dict[str, float]:
    """The metrics that are stored for a run."""
    test, train = result.metrics["test"], result.metrics["train"]
    last = next(iter(result.history[-1]["learners"].values()))
    numbers = {
        **{name: test[name] for name in ("accuracy", "worst_class_accuracy", "nll", "brier", "ece", "aurc")},
        "memorised": train.get("memorised"),
        "wrong_labels": train.get("wrong_labels"),
        "seconds": result.metrics["seconds"],
        "forward_passes": sum(result.metrics["forward_passes"].values()) / 1e6,
        "flops": result.metrics["cost"]["flops"],
        "parameters": result.metrics["cost"]["parameters"],
        "validation_accuracy": last.get("validation_accuracy"),
    }
    return {name: float("nan") if value is None else float(value) for name, value in numbers.items()}


HEAD = """
# CIFAR-10, {title}

**Question.** Do the nine methods help a small student on CIFAR-10? Here: {title}.
[cifar10.md](cifar10.md) sums up all questions.

**Data.** {images:,} training images of CIFAR-10, and its 10,000 test images, which are evaluated once. Random crops and
flips, with four fixed variants of each image.

**Networks.** The student is a ResNet-8 whose first convolution has stride 2 (75,290 parameters); the teacher is
{teacher}.

**Training.** {epochs} epochs with batches of 128, SGD with Nesterov momentum 0.9, weight decay 0.0005, two epochs of
warm-up and a cosine schedule. Evaluation is after the last epoch. Runs take bfloat16 where the processor has
instructions for it, else float32; each line of the raw results names its precision.

**Tuning.** Each row has three trials of {trial_epochs} epochs, compared by accuracy on a held-out tenth of the training
data, with a seed that is not reported. The plain student tries learning rates, a method its own parameters at a
learning rate of {lr}.
"""

TEACHERS: Mapping[str | None, str] = MappingProxyType(
    {
        None: "a ResNet-20 with the same stride, trained on the same labels in the same way, for each seed its own",
        "resnet20": "a ResNet-20 of 91.7 % test accuracy",
        "resnet56": "a ResNet-56 of 93.4 % test accuracy",
    }
)


CURVES = """
## Training

The loss of the plain student levels off in the last two epochs, when the cosine schedule ends. Means of three seeds
with their 95 % intervals, on augmented training images.

![Loss and accuracy of the plain student by epoch](cifar10-{name}.png)
"""


class CifarExperiment(Experiment):
    """An experiment whose lines name the precision, which depends on the processor."""

    def provenance(self, run: FunctionRun) -> dict[str, Any]:
        """As the base class; the precision of the networks in addition."""
        return {**super().provenance(run), "precision": resolve(Hardware(device="cpu")).precision}


def experiment(name: str) -> Experiment:
    """The experiment of a question: teachers, trials, then the rows."""
    question = QUESTIONS[name]
    tuning = [f"tuning {number}" for number in range(3)]
    seeds: dict[str, tuple[int, ...]] = dict.fromkeys(tuning, (TUNING,)) | {"test": SEEDS}
    teachers: dict[str, tuple[int, ...]] = {} if question.teacher else {"teachers": (TUNING, *SEEDS)}
    conditions = {**dict.fromkeys([*teachers, *tuning], ""), "test": question.title}
    skip = {(condition, "teacher") for condition in (*tuning, "test")}
    return CifarExperiment(
        name=f"cifar10-{name}",
        head=HEAD.format(
            title=question.title,
            images=question.images,
            teacher=TEACHERS[question.teacher],
            epochs=question.epochs,
            trial_epochs=question.epochs // 4,
            lr=LR,
        ),
        measure=functools.partial(run, name),
        rows=(*([] if question.teacher else ["teacher"]), *TRIALS),
        columns={
            "accuracy": Column("test accuracy", digits=2),
            **({"memorised": Column("wrong labels memorised")} if "noise" in question.fields else {}),
            "ece": Column("calibration error", share=False, digits=3),
            "worst_class_accuracy": Column("worst class"),
            "forward_passes": Column("forward passes, millions", share=False),
        },
        baseline="plain",
        conditions=conditions,
        seeds=teachers | seeds,
        skip=frozenset(skip | {("teachers", row) for row in TRIALS}),
        tail=question.tail + (CURVES.format(name=name) if curve_file(name, SEEDS[-1]).exists() else ""),
        module="cifar10",
        arguments=name,
    )


EXPERIMENTS = {name: experiment(name) for name in QUESTIONS}


def hours(question: str) -> None:
    """Train each row for two epochs of 2,500 images in one thread, and print the time that a whole question takes."""
    torch.set_num_threads(1)
    settings, total = QUESTIONS[question], 0.0
    teacher = f"resnet56@{DATA / 'cifar10-resnet56.safetensors'}" if settings.teacher else OWN_TEACHER
    data = f"npz:{DATA / 'cifar10.npz'}"
    for row in TRIALS:
        fields = {**COMMON, "epochs": 2, "warmup": 0.0, "views": 1, "validation": 0.0, "per_class": 250}
        if row == "plain":
            result = tutelage.train(STUDENT, data, **fields)
        else:
            cache = Path("runs") / "cifar10-hours"
            fields |= {**CACHE, "teacher_cache": str(cache / row)}
            result = tutelage.distill(teacher, STUDENT, data, method=row, **fields)
            shutil.rmtree(cache, ignore_errors=True)
        seconds = result.history[-1]["seconds"]  # the teacher's outputs are cached by then
        hours_per_run = seconds / 2500 * settings.images * settings.epochs / 3600
        runs = len(SEEDS) + len(TRIALS[row]) * 0.9 / 4
        total += hours_per_run * runs
        print(f"{row:8s} {hours_per_run:6.2f} hours a run, {hours_per_run * runs:6.2f} in all, one thread", flush=True)
    print(f"{question}: {total:.1f} hours of one thread, {total / 2:.1f} with --jobs 2")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("--hours", action="store_true", help="measure, and print how long it takes")
    options, remaining = parser.parse_known_args()
    if options.hours:
        hours(options.question)
    else:
        (RESULTS / f"cifar10-{options.question}").mkdir(exist_ok=True)
        main(EXPERIMENTS[options.question], remaining)
