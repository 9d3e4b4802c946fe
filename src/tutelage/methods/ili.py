"""Iterative label improvement: training on labels that networks of earlier rounds have predicted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import hard_labels
from tutelage.data.data import Split
from tutelage.data.loader import mix_seeds
from tutelage.data.stratified import stratified_split
from tutelage.errors import TutelageError
from tutelage.evaluation.metrics import accuracy
from tutelage.methods import Share, method
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Haase-Schütz, Stal, Hertlein, Sick 2020, arXiv 2002.02705", family="label refinement", evidence="code")
def ili(
    run: Run,
    *,
    rounds: Annotated[int, Field(ge=1)] = 10,
    threshold: Share = 0.0,
    partition: bool = False,
    restore: bool = True,
) -> Tapped:
    """Iterative label improvement (ILI, label noise): replace the labels by the network's predictions, train again.

        y_j <- argmax_k p_jk   where max_k p_jk > threshold

    In each round, a new network is trained on the current labels over the full schedule; then its probabilities p for
    the training samples, without augmentation, replace their labels. A sample whose prediction is not confident enough
    keeps its current label, and all samples stay in the training set. Labels of the held-out split never change.

    With ``partition`` (opILI) the training set is divided once into two halves. A network trained on the first half
    relabels the second; then one trained on the second half and its new labels relabels the first. No label is changed
    by a network that was trained on its sample. After the last round, the student is trained on both halves.

    The accuracy of each round's (first) network on the held-out split, whose labels are as noisy as those of the
    training split, decides when to stop: when it is below both values before it, starting with two zeros, thus never
    before the third round. Without held-out samples all rounds are done. ``rounds = 1`` without ``partition`` is
    ``plain``.

    A sample without a label gets one as soon as a network is confident. Verified labels (``trusted``) do not change.

    Args:
        run: the run; a teacher is not used.
        rounds: the largest number of rounds; a round is one training, or two on half of the data each.
        threshold: 0 relabels all samples, as the largest probability is above 0; 1 none.
        partition: opILI.
        restore: keep the last of the rounds with the best held-out accuracy: return its network, or with ``partition``
            train the student on the labels that this round began with, since the labels it ended with have given no
            better network; if it is the last round, on those. If false, keep the last round, which is the worst of
            three where the rule has stopped.

    The results are saved: for each sample the improved ``label``, which the network predicts or with ``partition`` is
    trained on, and ``confidence``, max_k p_jk in the best round; for the run a list of ``rounds`` with
    ``held_out_accuracy``, ``label_accuracy`` (``None`` if no clean label is known) and ``changed``, the number of
    samples whose label differs from the given one; ``given_label_accuracy`` and ``best_round``.

    Evidence: the authors' scripts, without their networks, schedules and noise. That unlabelled samples take part in
    this way is [inferred] from the abstract.

    Deviations: ``restore`` is ours; the authors return the last round (``restore=False``). The halves are stratified.
    The authors hold out 20 % (``validation=0.2``), and lower the learning rate by the loss on test samples, where ours
    follows the recipe's schedule. Their opILI relabels both halves once more at the end, which changes nothing, since
    the same networks have relabelled them before.
    """
    train = run.data.train
    if train.labels.ndim == 2:
        raise TutelageError("ili needs class numbers as labels, and these labels are soft; use their argmax")
    passes = _passes(train, partition, mix_seeds(run.seed, 5))
    numbers = itertools.count(int(partition))  # the student of number 0 is the one that is returned, if it can be
    history: list[Round] = []
    labels, best_round = train.labels, 0
    for number in range(rounds):
        current, network = _round(run, passes, labels, threshold, numbers)
        history.append(current)
        labels, best = current.labels, history[best_round].score
        if number == 0 or not restore or best is None or current.score is None or current.score >= best:
            best_round, model = number, network
        if has_dropped([past.score for past in history if past.score is not None]):
            break
    _note(run, history, best_round)
    if not partition:
        run.note_samples(label=history[best_round].labels, confidence=history[best_round].confidence)
        return model
    if best_round < len(history) - 1:
        labels = history[best_round - 1].labels if best_round else train.labels
    run.note_samples(label=labels, confidence=history[best_round].confidence)
    student = run.student()
    improved = replace(train, labels=labels)
    run.fit(Learner(student, None, run.label_terms()), data=replace(run.data, train=improved))
    return student


@dataclass(frozen=True)
class Part:
    """Samples of the training split.

    Attributes:
        samples: (M,) int64, their positions.
        split: the samples; their labels are those given.
    """

    samples: Tensor
    split: Split


@dataclass(frozen=True)
class Round:
    """The result of a round.

    Attributes:
        score: the held-out accuracy of the first network; ``None`` without labelled held-out samples.
        labels: (N,) int64, all labels after the round.
        confidence: (N,) float32, the largest probability of the network that has relabelled the sample.
    """

    score: float | None
    labels: Tensor
    confidence: Tensor


def relabelled(labels: Tensor, probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The labels after a relabelling, (N,) int64, and the largest probabilities, (N,).

    Args:
        labels: (N,) int64, the current ones.
        probabilities: (N, C).
        threshold: labels change where the largest probability is above it.
    """
    confidence, predicted = probabilities.max(1)
    return predicted.where(confidence > threshold, labels), confidence


def has_dropped(scores: Sequence[float]) -> bool:
    """Whether the last score is below both before it; two zeros precede the first."""
    *_, second_last, last, score = (0.0, 0.0, 0.0, *scores)
    return score < min(second_last, last)


def _passes(train: Split, partition: bool, seed: int) -> list[tuple[Part, Part]]:
    """What each network of a round is trained on, and what it relabels."""
    if not partition:
        whole = Part(torch.arange(len(train)), train)
        return [(whole, whole)]
    halves = stratified_split(train.targets.strata(train.labels), len(train) // 2, seed % 2**32)
    first, second = (Part(samples, train.subset(samples)) for samples in map(torch.from_numpy, halves))
    return [(first, second), (second, first)]


def _round(
    run: Run, passes: Sequence[tuple[Part, Part]], labels: Tensor, threshold: float, numbers: itertools.count[int]
) -> tuple[Round, Tapped]:
    """Train a new network for each pass, and relabel its samples; returns the first network, too."""
    labels, confidence = labels.clone(), torch.empty(len(labels))
    models: list[Tapped] = []
    for source, target in passes:
        model = run.student(next(numbers))
        split = replace(source.split, labels=labels[source.samples])
        run.fit(Learner(model, None, run.label_terms()), data=replace(run.data, train=split))
        models.append(model)
        probabilities = run.predict(model, target.split).softmax(1)
        new, confidence[target.samples] = relabelled(labels[target.samples], probabilities, threshold)
        if (trusted := target.split.trusted) is not None:
            new = labels[target.samples].where(trusted, new)
        labels[target.samples] = new
    return Round(_held_out_accuracy(run, models[0]), labels, confidence), models[0]


def _held_out_accuracy(run: Run, model: Tapped) -> float | None:
    """The share of held-out samples whose label the network predicts; ``None`` if none has a label."""
    if run.data.validation is None:
        return None
    score = float(accuracy(run.predict(model, run.data.validation), hard_labels(run.data.validation.labels)))
    return None if math.isnan(score) else score


def _note(run: Run, history: Sequence[Round], best_round: int) -> None:
    """Save the accuracy of networks and labels by round."""
    given, clean = run.data.train.labels, run.data.train.clean_labels
    known = clean >= 0

    def label_accuracy(labels: Tensor) -> float | None:
        return float((labels == clean)[known].float().mean()) if bool(known.any()) else None

    run.note(
        rounds=[
            {
                "held_out_accuracy": record.score,
                "label_accuracy": label_accuracy(record.labels),
                "changed": int((record.labels != given).sum()),
            }
            for record in history
        ],
        given_label_accuracy=label_accuracy(given),
        best_round=best_round + 1,
    )
