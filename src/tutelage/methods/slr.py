"""Stochastic label refinery."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Split
from tutelage.data.loader import mix_seeds
from tutelage.data.stratified import check_folds, stratified_folds
from tutelage.methods import Share, method
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import check_single_label
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Fang, Yang, Ni 2020, ICPR", family="label refinement", task=None, evidence="abstract")
def slr(
    run: Run,
    *,
    rounds: Annotated[int, Field(ge=1)] = 2,
    folds: Annotated[int, Field(ge=2)] = 5,
    share: Share = 0.5,
    anchor: Literal["original", "previous"] = "original",
) -> Tapped:
    """Stochastic label refinery (SLR, label noise): train on out-of-fold predictions as soft labels, in rounds.

        Y <- (1 - a) Y0 + a Q

    Each round splits the training set anew into stratified folds. For each fold, a new network is trained on the other
    folds over the full schedule, with cross-entropy on the current targets Y (initially the labels Y0); Q are its
    probabilities for the fold left out, without augmentation. After all folds, Y is updated. The student is trained on
    the last Y: rounds x folds + 1 trainings in total. For a sample without a label, Y = Q. Labels of the held-out split
    do not change. With a = 0 the result is bit for bit that of ``plain``.

    Args:
        run: the run; a teacher is not used.
        rounds: how often the targets are refined [inferred].
        folds: the number of folds per round [inferred]; 2 with more rounds is cheap.
        share: a [inferred]. Up to 0.5 the given label always keeps the largest probability; 1 uses predictions alone.
        anchor: the targets with the weight 1 - a: the given labels ("original", Y0) or the targets of the previous
            round ("previous", a moving average) [inferred].

    Evidence: the abstract names the random splits, the training on current targets, the update by predictions on the
    samples left out, and the rounds. The numbers of rounds and folds and the weight of Q are [inferred]; neither text
    nor code could be read.

    Ordered grades, the paper's other task, are trained as classes. On data whose targets are grades (the task
    ``ordinal``, ``targets="ordinal"`` in an npz file) the student is evaluated by the rounded expectation of the grade
    and by quadratically weighted kappa [inferred]. Compare it with ``plain`` on the same data: the decoding alone
    raises kappa.
    """
    check_single_label("slr", run.data)
    student = run.student()
    targets = refined(run, rounds=rounds, folds=folds, share=share, anchor=anchor)
    train = replace(run.data.train, labels=targets)
    run.fit(Learner(student, None, {"ce": CrossEntropy()}), data=replace(run.data, train=train))
    return student


def refined(run: Run, *, rounds: int, folds: int, share: float, anchor: Literal["original", "previous"]) -> Tensor:
    """The soft targets of the run's training split after these rounds, (N, C) float32; takes rounds x folds fits.

    With a share of 0 they are the given labels.
    """
    original = run.data.train
    check_folds(run.data.train.labels, run.data.classes, folds)
    numbers = itertools.count(1)
    train = original
    for round_number in range(rounds):
        predictions = torch.empty(len(train), run.data.num_classes)
        for train_indices, fold in stratified_folds(original.labels, folds, seed=mix_seeds(run.seed, 5, round_number)):
            model = run.student(next(numbers))
            data = replace(run.data, train=train.subset(train_indices), validation=None)
            run.fit(Learner(model, None, {"ce": CrossEntropy()}), data=data)
            predictions[fold] = run.predict(model, train.subset(fold)).softmax(1)
        if share:
            base: Split = original if anchor == "original" else train
            train = replace(original, labels=mixed(base.labels, predictions, share))  # all folds at once
    return train.labels


def mixed(labels: Tensor, predictions: Tensor, share: float) -> Tensor:
    """Y = (1 - a) Y0 + a Q; for a sample without a label, Y = Q if a > 0 and 0 otherwise.

    Args:
        labels: Y0, (N,) int64 with -1 for no label, or soft labels (N, C).
        predictions: Q, (N, C) probabilities.
        share: a.

    Returns:
        (N, C) float32.
    """
    if labels.ndim == 1:
        missing = labels == UNLABELLED
        soft = F.one_hot(labels.clamp_min(0), predictions.shape[1]).to(predictions)
        soft[missing] = predictions[missing] if share else 0.0
        labels = soft
    return (1 - share) * labels + share * predictions
