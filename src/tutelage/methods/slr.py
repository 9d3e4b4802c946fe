"""Stochastic label refinery."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.data.data import Data, Split
from tutelage.data.loader import mix
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError
from tutelage.methods import Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Fang, Yang, Ni 2020, ICPR", family="label refinement", evidence="abstract")
def slr(
    run: Run,
    *,
    rounds: Annotated[int, Field(ge=1)] = 2,
    folds: Annotated[int, Field(ge=2)] = 5,
    share: Share = 0.5,
    anchor: Literal["original", "previous"] = "original",
) -> Tapped:
    """Refined labels: soft targets that are predictions of networks which have not seen the sample, in rounds.

    In round t the training part is split anew into folds, class by class. For each fold a fresh network is trained on
    the others, L = - mean_i sum_k Y[i, k] log p_i[k] with the targets Y of round t - 1, over the full schedule; then Q
    are its probabilities for the fold left out, without augmentation. All folds done, Y = (1 - a) Y0 + a Q. The student
    is trained on the last Y: rounds x folds + 1 trainings in all. A sample without a label takes Q alone, once there is
    one. Held-out labels stay as they are. With a = 0 the student is the plain one, to the bit.

    The abstract has the splits, the training on current targets, the update by predictions on what was left out, and
    the rounds. How often, how many splits and how much of Q are [inferred]: neither text nor code could be had.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        rounds: how often the targets are refined [inferred].
        folds: into how many parts each round splits the training samples [inferred]; 2 with more rounds is cheap.
        share: a [inferred]. Up to 0.5 the given label always stays the largest; 1 takes predictions alone.
        anchor: what the share 1 - a is of: the labels given ("original", Y0) or the targets of the round before
            ("previous", a moving average) [inferred].

    Deviations: ordinal regression, the paper's other task, is not here.
    """
    student = run.student()
    targets = refined(run, rounds=rounds, folds=folds, share=share, anchor=anchor)
    train = replace(run.data.train, labels=targets)
    run.fit(Learner(student, None, {"ce": CrossEntropy()}), data=replace(run.data, train=train))
    return student


def refined(run: Run, *, rounds: int, folds: int, share: float, anchor: Literal["original", "previous"]) -> Tensor:
    """The soft targets of the run's training part after these rounds, (N, C) float32; takes rounds x folds fits.

    With a share of 0 they are the labels as they are given.
    """
    given = run.data.train
    _check_counts(run.data, folds)
    numbers = itertools.count(1)
    train = given
    for turn in range(rounds):
        predicted = torch.empty(len(train), run.data.num_classes)
        for kept, left_out in split_anew(given.labels, folds, seed=mix(run.seed, 5, turn)):
            model = run.student(next(numbers))
            data = replace(run.data, train=train.subset(kept), validation=None)
            run.fit(Learner(model, None, {"ce": CrossEntropy()}), data=data)
            predicted[left_out] = run.predict(model, train.subset(left_out)).softmax(1)
        if share:
            before: Split = given if anchor == "original" else train
            train = replace(given, labels=mixed(before.labels, predicted, share))  # all folds at once
    return train.labels


def split_anew(labels: Tensor, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The places (kept, left out) of each fold, sorted; every place is left out once, every class evenly."""
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # of fewer samples without a label than folds, which does no harm
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter.split(np.zeros(len(labels)), hard_labels(labels).numpy()))
    for kept, left_out in parts:
        yield torch.from_numpy(kept), torch.from_numpy(left_out)


def mixed(labels: Tensor, predicted: Tensor, share: float) -> Tensor:
    """Y = (1 - a) Y0 + a Q, and Y = Q for a sample without a label (without one still if a = 0).

    Args:
        labels: Y0, (N,) int64 with -1 for no label, or (N, C) soft.
        predicted: Q, (N, C) probabilities.
        share: a.

    Returns:
        (N, C) float32.
    """
    if labels.ndim == 1:
        absent = labels == UNLABELLED
        soft = F.one_hot(labels.clamp_min(0), predicted.shape[1]).to(predicted)
        soft[absent] = predicted[absent] if share else 0.0
        labels = soft
    return (1 - share) * labels + share * predicted


def _check_counts(data: Data, folds: int) -> None:
    """Refuse a class that some fold would be without."""
    for name, count in zip(data.classes, class_counts(data.train.labels, data.num_classes), strict=True):
        if 0 < count < folds:
            raise TutelageError(
                f"class {name!r} has {count} training samples, too few for {folds} folds; take fewer folds or add some"
            )
