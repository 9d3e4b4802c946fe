"""Training on the labels that look right."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Split
from tutelage.errors import TutelageError
from tutelage.methods import method
from tutelage.methods.clean_labels.estimate import By, Repair, Verdict, judge
from tutelage.methods.clean_labels.evidence import FURTHER_FITS, Evidence, gather
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run

__all__ = ["Evidence", "Repair", "Verdict", "clean_labels", "doubted_labels", "gather", "judge"]


@method(paper="Northcutt, Jiang, Chuang 2021, arXiv 1911.00068", family="noisy labels", evidence="abstract")
def clean_labels(
    run: Run,
    *,
    by: By = "posterior",
    folds: Annotated[int, Field(ge=2)] = 5,
    repair: Repair = "soften",
) -> Tapped:
    """Clean labels (label noise): find the labels that look wrong by cross-validation, and train on repaired ones.

    For each of several stratified folds, a network is trained on the other folds over the full schedule. A sample is
    judged by the network that was trained without it and by the trajectories of those that were trained with it: their
    probabilities, averaged over the epochs. Both give a distribution of its true class under an estimated noise matrix,
    see ``judge``. The student is trained on the repaired labels: folds + 1 trainings in total.

    The results are saved: for each sample ``wrong``, the probability that its label is wrong, ``suggested``, the most
    probable other class, ``fold``, and the kinds of evidence; for the run ``noise_rate``, ``noise_matrix`` and
    ``fold_matrices``, the matrix estimated from each fold alone.
    ``tutelage labels`` shows them.

    Args:
        run: the run; a teacher is not used.
        by: the evidence that orders the labels: the "posterior" probability of the label, "out_of_sample"
            probabilities, "differences", "agreement", or P(noisy) of "drpl" with its default settings, which takes
            three more fits (see ``drpl``).
        folds: the number of networks.
        repair: "soften" all labels: the target of a sample is the estimated distribution of its true class, so that the
            networks that judge it are its teachers; samples about whose class they disagree count as ones without a
            label; "remove" the labels that are more probably wrong than right, and their samples count as ones without
            a label, so that batches stay those of other methods; or "replace" these labels with the suggested class.

    Evidence: cross-validated probabilities as evidence, and training without the samples they doubt, are the procedure
    of confident learning [from memory; its text was not read]. Deviations: the paper removes as many labels as its
    noise matrix says; here the matrix is improved and shrunk towards symmetric noise, trajectories are evidence, too,
    and by default labels are softened. Trajectories, shrinking and soft labels are our own.
    """
    split = run.data.train
    if split.labels.ndim == 2:
        raise TutelageError("clean_labels needs class numbers as labels, and these labels are soft; use their argmax")
    student = run.student()
    rows = (split.labels != UNLABELLED).nonzero()[:, 0]
    labelled = split.subset(rows)
    evidence = gather(run, labelled, folds, drpl=by in FURTHER_FITS)
    verdict = judge(evidence, labelled.labels, by)
    wrong = verdict.wrong if labelled.trusted is None else verdict.wrong.where(~labelled.trusted, 0.0)
    doubted = doubted_labels(wrong, labelled.labels)
    run.note(
        noise_rate=float(wrong.mean()),
        noise_matrix=verdict.noise_matrix.tolist(),
        fold_matrices=verdict.fold_matrices.tolist(),
        doubted=int(doubted.sum()),
    )
    run.note_samples(
        wrong=_spread(wrong, rows, len(split)),
        suggested=_spread(verdict.suggested, rows, len(split)),
        fold=_spread(evidence.fold, rows, len(split)),
        **{name: _spread(values, rows, len(split)) for name, values in verdict.support.items()},
    )
    if repair == "soften":
        labels = torch.zeros(len(split), run.data.num_classes).index_put((rows,), _soft_labels(verdict, labelled))
    else:
        replacement = verdict.suggested if repair == "replace" else torch.full_like(labelled.labels, UNLABELLED)
        labels = split.labels.index_put((rows,), labelled.labels.where(~doubted, replacement))
    run.fit(Learner(student, None, run.label_terms()), data=replace(run.data, train=replace(split, labels=labels)))
    return student


def _soft_labels(verdict: Verdict, labelled: Split) -> Tensor:
    """The soft label of each sample, (N, C) float32; verified labels are certain."""
    soft = verdict.soft_labels.float()
    if labelled.trusted is None:
        return soft
    return soft.where(~labelled.trusted[:, None], F.one_hot(labelled.labels, soft.shape[1]).float())


def doubted_labels(wrong: Tensor, labels: Tensor) -> Tensor:
    """Return which labels are more probably wrong than right, (N,) bool; of each class at least one is not doubted.

    Args:
        wrong: (N,), the probability that each label is wrong.
        labels: (N,) int64.
    """
    doubted = wrong > 0.5
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        doubted[members[wrong[members].argmin()]] = False
    return doubted


def _spread(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Values of some rows among all: those of other rows are NaN, or -1 for integers."""
    missing = float("nan") if values.is_floating_point() else UNLABELLED
    return torch.full((size,), missing, dtype=values.dtype).index_put((rows,), values)
