"""A probabilistic neural network on the embedding of a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.batch import hard_labels
from tutelage.data.loader import mix_seeds
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, method
from tutelage.methods.pnn.scores import ParzenCrossEntropy, leave_one_out_log_scores, leave_one_out_sigma
from tutelage.methods.pnn.surgery import pnn as surgery
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

CLIP = 1.0  # [ours] of the gradient norm in joint training: without it, an MLP on digits collapses at a rate of 0.05
REJECTED = 0.01  # the share of the exemplars whose score, without themselves, is below the threshold


@method(
    paper="Li, Fan, Ganz, Yezzi, Barnaghi 2020, arXiv 2010.09633",
    family="adversarial robustness",
    evidence="abstract",
)
def pnn(
    run: Run,
    *,
    joint: bool = False,
    per_class: Annotated[int, Field(ge=1)] = 200,
    background: NonNegative = 1e-3,
) -> Tapped:
    """MLP-PNN: the classifier becomes a sum of kernels around training samples, whose scores need not sum to 1.

        S_c(x) = 1 / N_c sum over exemplars i of class c of exp(-||phi(x) - phi(x_i)||^2 / (2 sigma^2))

    phi is the embedding, the input of the classifier. The prediction is the class with the largest score, and the
    confidence is S_c itself, in (0, 1], which falls to 0 far from the exemplars: it neither grows linearly along a ray,
    as logits of a ReLU network do, nor is it forced to sum to 1 over the classes. The logits of the network are log S_c
    (softmax normalises them; the metrics of calibration read that). An input is rejected if its largest score is below
    the 1 % quantile of the exemplars' own largest scores, each without itself; ``rejected``, ``accepted_accuracy`` and
    ``parzen_confidence`` of the evaluation are the share of rejected samples, the accuracy on the others and the mean
    largest score.

    The paper uses such a network as a control in an experiment on the causes of adversarial examples (see the method
    ``causes``). It is no defence: attack its logits, which are logarithms and have a gradient everywhere, by
    ``pgd:0.2:loss=margin``. The exponentials underflow.

    Args:
        run: the run; a teacher is not used.
        joint: train phi by -log(S_y / (sum_c S_c + background)) from the start, instead of training a network with a
            linear classifier by cross-entropy and replacing the classifier afterwards.
        per_class: the largest number of exemplars of a class, drawn from the training samples.
        background: delta of the joint training.

    sigma maximises the leave-one-out likelihood of the exemplars' classes, S_y / sum S. Joint training keeps that of
    the initial embedding, since it only sets the scale of the embedding; it computes the exemplars' embeddings again
    after each epoch, and a sample is no exemplar of itself. The accuracies on the held-out split after each epoch are
    those with the exemplars of the epoch's start. The gradient norm is clipped at 1 in joint training if the recipe
    sets no clip, since the first gradients are large. ``notes`` in ``result.json`` has sigma and the logarithm of the
    threshold.

    Evidence: the abstract, which has the name MLP-PNN; the form, the joint loss and the threshold are [inferred].
    """
    rows = exemplar_rows(run, per_class)
    index = torch.where(rows >= 0, run.data.train.index[rows], -1)
    student = run.student()
    if joint:
        student = _with_head(run, student, rows)
        head = surgery.head_of(student.module)
        set_exemplars(run, student, rows, with_sigma=True)

        def refresh(_records: Sequence[Record]) -> bool:
            set_exemplars(run, student, rows)
            return False

        terms = {"pnn": ParzenCrossEntropy(head, index, background)}
        clip = CLIP if run.recipe.clip is None else run.recipe.clip
        run.fit(Learner(student, None, terms, evaluated=True), until=refresh, clip=clip)
        set_exemplars(run, student, rows)
    else:
        run.fit(Learner(student, None, run.label_terms()))
        student = _with_head(run, student, rows)
        set_exemplars(run, student, rows, with_sigma=True)
    head = surgery.head_of(student.module)
    run.note(sigma=float(head.sigma), threshold=float(head.threshold))
    return student


def exemplar_rows(run: Run, per_class: int) -> Tensor:
    """The rows of the training split that are exemplars, (C, K) int64, -1 where a class has fewer.

    K is at most ``per_class``. They depend on the seed and the labels. Soft labels count as their largest class.

    Raises:
        TutelageError: a class has no sample.
    """
    labels = hard_labels(run.data.train.labels).cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(mix_seeds(run.seed, 3)))
    chosen = [order[labels[order] == label][:per_class] for label in range(run.data.num_classes)]
    for name, rows in zip(run.data.classes, chosen, strict=True):
        if not len(rows):
            raise TutelageError(
                f"class {name!r} has no training sample, and each class needs an exemplar; label some, or leave it out"
            )
    return torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-1)


def set_exemplars(run: Run, student: Tapped, rows: Tensor, *, with_sigma: bool = False) -> None:
    """Store the embeddings of the exemplars, the threshold that follows and, if wished, the bandwidth.

    Args:
        run: the run.
        student: a network with a ``ParzenHead``; it is changed.
        rows: from ``exemplar_rows``.
        with_sigma: whether to estimate the bandwidth, too.
    """
    head, present = surgery.head_of(student.module), rows >= 0
    embeddings = run.predict(student, run.data.train.subset(rows[present]), ("embedding",))
    exemplars = torch.zeros(*rows.shape, embeddings.shape[1])
    exemplars[present] = embeddings
    sigma = leave_one_out_sigma(exemplars, present) if with_sigma else float(head.sigma)
    scores = leave_one_out_log_scores(exemplars, present, sigma)
    head.exemplars.copy_(exemplars)
    head.present.copy_(present)
    head.sigma.fill_(sigma)
    head.threshold.fill_(float(scores.amax(1).quantile(REJECTED)))


def _with_head(run: Run, student: Tapped, rows: Tensor) -> Tapped:
    surgery.apply(student.module, run.example(student), per_class=rows.shape[1])
    return student.rewrapped()
