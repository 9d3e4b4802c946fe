"""Losses that place the features of each class along a fixed vector."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError, unknown
from tutelage.methods.orthogonal.surgery.orthogonal import COSINES, EPS
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.precision import full_precision
from tutelage.terms.targets import check_targets, labelled
from tutelage.terms.term import Term

Form = Literal["direction", "squares", "cross_entropy", "energy"]


@full_precision
def orthogonal_placement(cosines: Tensor, targets: Tensor, form: Form = "direction", scale: float = 16.0) -> Tensor:
    """A loss of each sample from the cosines u_c = b_c^T h / ||h|| of its features h to the places b_c.

    * ``direction`` (variant A): ||h / ||h|| - b_y||^2 = 2 - 2 u_y, which is 0 if h is a positive multiple of b_y.
    * ``squares`` (B): sum_c (u_c - 1[c = y])^2. It equals A if there are as many classes as features; else the part of
      h outside the span of the places is free.
    * ``cross_entropy`` (C): cross-entropy of the logits scale u.
    * ``energy`` (D): -log(u_y^2 + 1e-8), in which h and -h are the same.

    All are invariant to the length of h, so that gradients are orthogonal to h and proportional to 1 / ||h||. [All
    inferred: the paper's formulas could not be read.]

    Args:
        cosines: u, (B, C).
        targets: (B,) int64, ``-1`` for samples without a label, whose loss is 0; or, for B and C, soft labels w (B, C),
            which take the place of 1[c = y].
        form: one of the above.
        scale: of the logits in C.

    Returns:
        (B,): squared distances in A and B, nats in C and D.

    Raises:
        TutelageError: soft labels in A or D, or no such form.
    """
    if form not in get_args(Form):
        raise unknown("form of the loss", form, get_args(Form))
    if form == "cross_entropy":
        return cross_entropy(scale * class_logits(cosines), targets)
    classes = class_logits(cosines).shape[1]
    check_targets(targets, classes)
    is_soft = targets.is_floating_point()
    if is_soft and form != "squares":
        raise TutelageError(
            f"the form {form!r} needs class numbers as labels, and these labels are soft; use the form squares or "
            "cross_entropy"
        )
    one_hot = targets if is_soft else targets[:, None] == torch.arange(classes, device=targets.device)
    weights = one_hot.to(cosines)
    own = (cosines * weights).sum(1)
    if form == "squares":
        values = (cosines - weights).square().sum(1)
    else:
        values = 2 - 2 * own if form == "direction" else -(own.square() + EPS).log()
    return values.where(labelled(targets), 0.0)


class OrthogonalPlacement(Term):
    """``orthogonal_placement`` of the cosines of a network with fixed places and the batch's targets, per sample (B,).

    Args:
        form, scale: as in ``orthogonal_placement``.
    """

    roles = (COSINES,)
    reads_teacher = False

    def __init__(self, form: Form = "direction", scale: float = 16.0) -> None:
        super().__init__()
        self.form, self.scale = form, scale

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), as ``orthogonal_placement``."""
        targets = self.required(batch, "the batch, for its targets").targets
        return orthogonal_placement(student[COSINES], targets, self.form, self.scale)
