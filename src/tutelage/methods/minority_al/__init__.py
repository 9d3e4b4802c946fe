"""Active learning for minority classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.loader import mix_seeds
from tutelage.errors import TutelageError
from tutelage.methods import Share, method
from tutelage.methods.minority_al.acquisition import (
    NO_CLASS,
    Base,
    Candidates,
    Rank,
    by_base,
    by_expected_deficit,
    by_minority,
)
from tutelage.methods.minority_al.classifiers import linear_classifiers, trained_students
from tutelage.methods.minority_al.pool import Pool
from tutelage.models.attach import find_classifier
from tutelage.models.tapped import Tapped
from tutelage.tasks.task import check_single_label
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Query = Literal["minority", "soft", "base"]


@method(paper="Aggarwal, Popescu, Hudelot 2020, arXiv 2202.00390", family="active learning", evidence="abstract")
def minority_al(
    run: Run,
    *,
    initial: Annotated[int, Field(ge=1)] = 20,
    rounds: Annotated[int, Field(ge=0)] = 10,
    budget: Annotated[int, Field(ge=1)] = 10,
    query: Query = "minority",
    share: Share = 1.0,
    rank: Rank = "certain",
    base: Base = "margin",
    explore: Share = 0.1,
    scheme: Literal["network", "classifier"] = "network",
) -> Tapped:
    """Active learning for minority classes (class imbalance): request labels where few-labelled classes are predicted.

        d_c = max(0, n - n_c),   n_c: labels of class c so far,   n: their mean over classes

    The labels of the training set are hidden. The first requests are random. In each round a classifier is trained on
    the labels so far, and b further labels are requested. The classes with a deficit d_c divide b among themselves in
    proportion to it (largest remainder, and no more than balance the classes), and the share of a class goes to samples
    that are predicted as this class. The base acquisition chooses the rest: where too few samples are predicted as a
    class, and all if the classes are balanced. The student is trained on all requested labels: rounds + 1 fits.

    Args:
        run: the run; a teacher is not used. Training samples without a label cannot be requested. Labels of a held-out
            split are not counted: ``--validation 0`` holds out none.
        initial: the number of random first requests.
        rounds: the number of rounds; they end earlier if all labels have been requested.
        budget: b.
        query: "minority", as above; "soft": the samples with the largest sum_c p_c d_c, for probabilities p; "base":
            the base acquisition alone.
        share: the share of b for minority classes; the rest goes to the base acquisition.
        rank: which of the samples that are predicted as a class come first: "certain" ones, with the largest margin
            between the two largest probabilities, or "uncertain" ones.
        base: "random"; by uncertainty: "least_confidence", "margin" or "entropy"; or "k_centre", the samples farthest
            from the labelled ones by their embeddings.
        explore: the share of b for random samples, at least one if above 0, while a class has no label: no sample is
            predicted as such a class.
        scheme: "network": each round trains a new student, which starts from its initial or pretrained weights.
            "classifier": all layers but the last stay as they are. The embeddings are computed once, each round trains
            a linear classifier on them, and finally the student's last layer is trained. For pretrained students.

    Raises:
        TutelageError: soft labels, or, for scheme "classifier", a student without a linear last layer.

    ``result.json`` records for each round the number of labels of each class, the coefficient of variation of these
    counts, and the precision: the share of requests for a minority class that were of this class.
    ``samples.safetensors`` has the round in which each label was requested, -1 for none.

    Evidence: the abstract names the preference for samples that are probably of minority classes, and the two schemes.
    The acquisition is [inferred], as are exploration, the share, the order within a class and all numbers. The authors'
    related papers train linear SVMs [from memory]; here the classifier is a linear layer with cross-entropy, for its
    probabilities.

    Deviations: with scheme "network", the paper fine-tunes a pretrained network; a student has the weights that it is
    given. A class with tied predictions gets no candidate, and ties are broken at random.
    """
    check_single_label("minority_al", run.data)
    train, classes = run.data.train, run.data.num_classes
    if train.labels.ndim == 2:
        raise TutelageError("minority_al needs class numbers as labels, and these labels are soft; use their argmax")
    pool, generator = Pool(train.labels), torch.Generator().manual_seed(mix_seeds(run.seed, 8))
    student = run.student()
    trainable = None if scheme == "network" else _last_layer(run, student)
    predict = (
        linear_classifiers(run, student)
        if scheme == "classifier"
        else trained_students(run, features=base == "k_centre")
    )
    first = pool.candidates
    pool.request(first[torch.randperm(len(first), generator=generator)[:initial]])
    history = [_record(pool.counts(classes))]
    for number in range(1, rounds + 1):
        labelled, rows = pool.labelled, pool.candidates
        if not len(rows):
            break
        probabilities, features = predict(number, labelled, pool.labels[labelled])
        candidates = Candidates(
            probabilities[rows],
            pool.counts(classes),
            torch.randperm(len(rows), generator=generator),
            None if features is None else (features[rows], features[labelled]),
        )
        count = min(budget, len(rows))
        chosen, intended = acquire(candidates, count, query=query, share=share, rank=rank, base=base, explore=explore)
        labels = pool.request(rows[chosen])
        history.append(_record(pool.counts(classes), labels, intended))
    run.note(rounds=history)
    run.note_samples(round=pool.round)
    final = replace(train.subset(pool.labelled), labels=pool.labels[pool.labelled])
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, trainable=trainable), data=replace(run.data, train=final))
    return student


def acquire(
    candidates: Candidates, number: int, *, query: Query, share: float, rank: Rank, base: Base, explore: float
) -> tuple[Tensor, Tensor]:
    """Choose the candidates whose labels are requested next; see ``minority_al``.

    Returns:
        ``number`` distinct indices of candidates, and the class that each was requested for, -1 for none.
    """
    free = torch.ones(len(candidates.order), dtype=torch.bool)
    chosen: list[Tensor] = []

    def take(indices: Tensor) -> None:
        free[indices] = False
        chosen.append(indices)

    if query != "base" and explore and bool((candidates.counts == 0).any()):
        take(candidates.order[: max(1, round(explore * number))])
    intended = torch.full((number,), NO_CLASS)
    first = sum(map(len, chosen))
    minority = round(share * (number - first))
    if query == "minority":
        take(by_minority(candidates, free, minority, rank))
    elif query == "soft":
        take(by_expected_deficit(candidates, free, minority))
    last = sum(map(len, chosen))
    take(by_base(candidates, base, free, number - last))
    indices = torch.cat(chosen)
    intended[first:last] = candidates.predicted[indices[first:last]]
    return indices, intended


def _last_layer(run: Run, student: Tapped) -> Callable[[str], bool]:
    """Whether a parameter of this name belongs to the last layer."""
    layer = find_classifier(student.module, run.example(student))
    return lambda name: name.startswith(f"{layer}.")


def _record(counts: Tensor, labels: Tensor | None = None, intended: Tensor | None = None) -> dict[str, Any]:
    """A round for ``result.json``, from the labels (b,) that were requested in it, and the class each was for."""
    values = counts.double()
    entry = {"counts": counts.tolist(), "variation": float(values.std(correction=0) / values.mean())}
    if labels is not None and intended is not None and bool((intended != NO_CLASS).any()):
        entry["precision"] = float((labels == intended)[intended != NO_CLASS].double().mean())
    return entry
