"""Triplet losses for embeddings that are clustered: Ho, Keuper, Pfreundt, Keuper 2020, arXiv 2007.03123."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import checked_labels
from tutelage.terms.term import Term

Form = Literal["relative", "bounded", "absolute"]

MARGINS: dict[Form, float] = {"relative": 1.0, "bounded": 1.0, "absolute": 3.0}
"""alpha of each form, unless another is given."""


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
    * ``bounded``: L_I + [d_ap - beta]_+ (L_II). With ``nested`` the second hinge stands within the first, as in one
      public re-implementation: [d_ap - d_an + alpha + [d_ap - beta]_+]_+, which is 0 wherever the gap is wide enough.
    * ``absolute``: [alpha - d_an]_+ + [d_ap - beta]_+ (L_III): positives within a squared radius of beta, negatives
      beyond one of alpha.

    Args:
        positive, negative: d_ap and d_an, *squared* distances of one shape (...).
        form: which of the three.
        alpha: the margin; ``None`` for that of the form, 1 or, for ``absolute``, 3.
        beta: the squared radius; ``relative`` has none.
        nested: of ``bounded`` alone.

    Returns:
        (...), in the unit of the features squared. Where all samples have one embedding it is alpha, without a
        gradient.
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
    """A positive and a negative for each sample as an anchor, drawn uniformly by torch's generator.

    Args:
        targets: (B,) int64, ``-1`` for samples without a label, which are in no triplet; of soft labels the largest.

    Returns:
        The places of the positives and the negatives, (B,) int64, and (B,) bool: which anchors have both. The places of
        the others mean nothing.
    """
    targets = checked_labels(targets)
    labelled = targets != UNLABELLED
    known = labelled[:, None] & labelled
    same = targets[:, None] == targets
    positives = known & same & ~torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    negatives = known & ~same
    # The largest of uniform numbers is any of them alike; parts of the batch would make the device wait for the host.
    chance = torch.rand(2, *same.shape, device=targets.device)
    allowed = torch.stack([positives, negatives])
    places = chance.masked_fill(~allowed, -1.0).argmax(2)
    return places[0], places[1], allowed.any(2).all(0)


@full_precision
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_i||^2 of two sets of embeddings (B, D): (B,). The gradient at a distance of 0 is 0."""
    return (a - b).square().sum(1)


@torch.no_grad()
def collapsed(embeddings: Tensor, smallest: float = 1e-3) -> Tensor:
    """Whether all samples have about the same embedding: 0-d bool, on the device.

    Every triplet loss then stands at its margin and its gradient is about 0: training has ended without a result. It
    is to be asked at the end of an epoch, of the embeddings of a part, since reading the answer waits for the device.

    Args:
        embeddings: (N, D) or (N, ...), flattened per sample.
        smallest: the standard deviation of a dimension below which samples count as the same, on average (root mean
            square) over the dimensions.
    """
    features = at_least_float32(embeddings).flatten(1)
    return features.var(0, correction=0).mean().sqrt() < smallest


class Triplets(Term):
    """``triplet_loss`` of the embeddings, over one random triplet for each anchor of the batch: one value ().

    The mean runs over all triplets, those with a loss of 0 among them. An anchor without another sample of its class,
    or without one of another class, is in no triplet; in a batch without any triplet the value is 0. Triplets are
    random and not the hardest ones on purpose: where labels are wrong, the hardest positive mostly has a wrong label.

    Args:
        form, alpha, beta, nested: as in ``triplet_loss``. The margins are of squared distances between embeddings as
            they are, which nothing brings to unit length.
    """

    roles = ("embedding",)

    def __init__(
        self, form: Form = "absolute", alpha: float | None = None, beta: float = 1.0, *, nested: bool = False
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"the form must be one of {', '.join(get_args(Form))}, got {form!r}")
        alpha = MARGINS[form] if alpha is None else alpha
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be a finite number above 0, got {alpha}")
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be a finite number of at least 0, got {beta}")
        if form == "absolute" and beta >= alpha:
            raise ValueError(
                f"positives within beta and negatives beyond alpha need beta < alpha, got {beta} and {alpha}"
            )
        if nested and form != "bounded":
            raise ValueError(f"only the bounded form can be nested, not the {form} one")
        self.form, self.alpha, self.beta, self.nested = form, alpha, beta, nested

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """It reads nothing of a teacher."""
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in the unit of the features squared."""
        if batch is None:
            raise ValueError("Triplets needs the batch, for its targets")
        features = at_least_float32(student["embedding"]).flatten(1)
        positive, negative, complete = draw_triplets(batch.targets)
        near, far = (squared_distances(features, features[places]) for places in (positive, negative))
        losses = triplet_loss(near, far, self.form, self.alpha, self.beta, nested=self.nested)
        return losses.where(complete, 0.0).sum() / complete.sum().clamp(min=1)
