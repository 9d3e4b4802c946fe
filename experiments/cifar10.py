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
from experiments.cifar10_texts import CLEAN, CURVES, HEAD, IMBALANCE, TEACHERS
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
    data, folder = f"npz:{DATA / 'cifar10.npz'}", Path("runs") / "cifar10-hours"
    teacher = teacher_of(question, TUNING) if settings.teacher else str(folder / "teacher")
    shutil.rmtree(folder, ignore_errors=True)
    for row in EXPERIMENTS[question].rows:
        fields = {**COMMON, "epochs": 2, "warmup": 0.0, "views": 1, "validation": 0.0, "per_class": 250}
        if row == "teacher":
            result = tutelage.train(OWN_TEACHER, data, out=teacher, **fields)
        elif row == "plain":
            result = tutelage.train(STUDENT, data, **fields)
        else:
            fields |= {**CACHE, "teacher_cache": str(folder / row)}
            result = tutelage.distill(teacher, STUDENT, data, method=row, **fields)
        seconds = result.history[-1]["seconds"]  # the teacher's outputs are cached by then
        hours_per_run = seconds / 2500 * settings.images * settings.epochs / 3600
        runs = len(SEEDS) + (1 if row == "teacher" else len(TRIALS[row]) * 0.9 / 4)
        total += hours_per_run * runs
        print(f"{row:8s} {hours_per_run:6.2f} hours a run, {hours_per_run * runs:6.2f} in all, one thread", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
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
