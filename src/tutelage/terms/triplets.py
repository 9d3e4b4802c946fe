"""Triplet losses for embeddings that will be clustered: Ho, Keuper, Pfreundt, Keuper 2020, arXiv 2007.03123."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

Form = Literal["relative", "bounded", "absolute"]

MARGINS: dict[Form, float] = {"relative": 1.0, "bounded": 1.0, "absolute": 3.0}
"""The default of alpha in each form."""


@full_precision
def triplet_loss(
    positive: Tensor,
    negative: Tensor,
    form: Form = "absolute",
    alpha: float | None = None,
    beta: float = 1.0,
    *,
    nested: bool = False,
) -> Tensor:
    """A hinge loss of each triplet, from the squared distances of its anchor to its positive and its negative.

    * ``relative``: [d_ap - d_an + alpha]_+ (L_I).
    * ``bounded``: L_I + [d_ap - beta]_+ (L_II). With ``nested`` the second hinge is inside the first, as in one public
      re-implementation: [d_ap - d_an + alpha + [d_ap - beta]_+]_+, which is 0 if the gap is wide enough.
    * ``absolute``: [alpha - d_an]_+ + [d_ap - beta]_+ (L_III), which pulls positives into a squared radius of beta and
      pushes negatives out of a squared radius of alpha.

    Args:
        positive, negative: d_ap and d_an, *squared* distances, both of shape (...).
        form: "relative", "bounded" or "absolute".
        alpha: the margin; ``None`` for 1 (relative and bounded) or 3 (absolute).
        beta: the squared radius; the relative form has none.
        nested: see the bounded form.

    Returns:
        (...), in squared units of the features. If all embeddings are equal, it is alpha and has no gradient.
    """
    alpha = MARGINS[form] if alpha is None else alpha
    if form == "absolute":
        return (alpha - negative).relu() + (positive - beta).relu()
    gap = positive - negative + alpha
    if form == "relative":
        return gap.relu()
    excess = (positive - beta).relu()
    return (gap + excess).relu() if nested else gap.relu() + excess


def draw_triplets(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a positive and a negative for each sample as an anchor, uniformly, by torch's generator.

    Args:
        targets: (B,) int64, ``-1`` for samples without a label, which are in no triplet; or soft labels, whose largest
            class counts.

    Returns:
        The indices of the positives and of the negatives, (B,) int64 each, and which anchors have both, (B,) bool. The
        indices of the other anchors are arbitrary.
    """
    targets = checked_labels(targets)
    is_labelled = targets != UNLABELLED
    labelled_pairs = is_labelled[:, None] & is_labelled
    same_class = targets[:, None] == targets
    positives = labelled_pairs & same_class & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    negatives = labelled_pairs & ~same_class
    # The argmax of uniform numbers is a uniform choice; indexing by masks would make the host wait for the device.
    scores = torch.rand(2, *same_class.shape, device=targets.device)
    allowed = torch.stack([positives, negatives])
    indices = scores.masked_fill(~allowed, -1.0).argmax(2)
    return indices[0], indices[1], allowed.any(2).all(0)


@full_precision
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_i||^2 of the rows of two (B, D) tensors: (B,). The gradient at a distance of 0 is 0."""
    return (a - b).square().sum(1)


@torch.no_grad()
def collapsed(embeddings: Tensor, smallest: float = 1e-3) -> Tensor:
    """Whether all samples have almost the same embedding: a 0-d bool tensor, on the device.

    Every triplet loss then equals its margin and its gradient is about 0, so that training cannot continue. Reading the
    result waits for the device: call this once per epoch.

    Args:
        embeddings: (N, D) or (N, ...), flattened per sample.
        smallest: the standard deviation below which samples count as equal; root mean square over the dimensions.
    """
    features = at_least_float32(embeddings).flatten(1)
    return features.var(0, correction=0).mean().sqrt() < smallest


class Triplets(Term):
    """``triplet_loss`` of the embeddings, with one random triplet for each anchor of the batch: one value ().

    The mean is over all triplets, also those with a loss of 0. An anchor whose batch has no other sample of its class,
    or none of another class, is in no triplet; without any triplet the value is 0. Triplets are random rather than the
    hardest ones on purpose: with wrong labels, the hardest positive is mostly a mislabelled sample.

    Args:
        form, alpha, beta, nested: as in ``triplet_loss``. The margins apply to squared distances between embeddings,
            which are not normalised.
    """

    roles = ("embedding",)
    reads_teacher = False

    def __init__(
        self, form: Form = "absolute", alpha: float | None = None, beta: float = 1.0, *, nested: bool = False
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise TutelageError(f"the form must be one of {', '.join(get_args(Form))}, got {form!r}")
        alpha = MARGINS[form] if alpha is None else alpha
        if not 0 < alpha < math.inf:
            raise TutelageError(f"alpha must be a finite number above 0, got {alpha}")
        if not 0 <= beta < math.inf:
            raise TutelageError(f"beta must be a finite number of at least 0, got {beta}")
        if form == "absolute" and beta >= alpha:
            raise TutelageError(f"the absolute form needs beta < alpha, got {beta} and {alpha}")
        if nested and form != "bounded":
            raise TutelageError(f"only the bounded form can be nested, not the {form} form")
        self.form, self.alpha, self.beta, self.nested = form, alpha, beta, nested

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in squared units of the features."""
        features = at_least_float32(student["embedding"]).flatten(1)
        positives, negatives, complete = draw_triplets(self.required(batch, "the batch, for its targets").targets)
        d_ap, d_an = (squared_distances(features, features[indices]) for indices in (positives, negatives))
        losses = triplet_loss(d_ap, d_an, self.form, self.alpha, self.beta, nested=self.nested)
        return losses.where(complete, 0.0).sum() / complete.sum().clamp(min=1)
