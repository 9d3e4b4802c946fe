"""The Sinkhorn divergence of two batches: Bouniot, Audigier, Loesch 2020, arXiv 2102.03156."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def transport_plan(
    a: Tensor, b: Tensor, regularisation: float = 1.0, iterations: int = 50, tolerance: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The entropic transport plan between two clouds of points with equal weights, and the cost of each pair.

    C_ij = ||a_i - b_j||^2, pi = exp((u_i + v_j - C_ij) / sigma); in turns u <- u + sigma (log 1/n - log sum_j pi_ij),
    and v alike with 1/m and the sum over i, from 0 each. It stops with the iteration that changes u by less than
    ``tolerance`` in all (L1), as the authors' code does, and costs a GPU the same time wherever that is.
    The columns of pi then add up to 1/m; by how much its rows miss 1/n tells how far it is from the optimum. For
    squared distances far above sigma the iterations do not suffice, and pi pairs nearest points.

    Args:
        a, b: (n, D) and (m, D); the gradient passes through all iterations to both.
        regularisation: sigma > 0, in the unit of the cost.
        iterations: at most so many.
        tolerance: where to stop.

    Returns:
        pi (n, m), which adds up to 1, and C (n, m).
    """
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    u, v = a.new_zeros(len(a), 1), a.new_zeros(1, len(b))
    on = torch.ones((), dtype=torch.bool, device=a.device)
    for _ in range(iterations):
        pace = regularisation * on.to(cost)
        change = pace * (-math.log(len(a)) - ((u + v - cost) / regularisation).logsumexp(1, True))
        u = u + change
        v = v + pace * (-math.log(len(b)) - ((u + v - cost) / regularisation).logsumexp(0, True))
        on = on & ~(change.abs().sum() < tolerance)
        if on.device.type == "cpu" and not on:  # anywhere else a look would wait for the device
            break
    return ((u + v - cost) / regularisation).exp(), cost


@full_precision
def sinkhorn_divergence(
    a: Tensor, b: Tensor, regularisation: float = 1.0, iterations: int = 50, tolerance: float = 0.1
) -> Tensor:
    """S(a, b) = W(a, b) - W(a, a) / 2 - W(b, b) / 2, with W = <pi, C> of ``transport_plan``.

    W is the transport part alone, as in the authors' code: the entropy of the plan is not added, as it is in the
    textbook's divergence. A distance of two distributions, whatever the order of their points; 0 for equal ones.

    Args:
        a, b: (n, D) and (m, D); the gradient reaches both.
        regularisation, iterations, tolerance: as in ``transport_plan``.

    Returns:
        (), in the unit of the points squared. A property of the batch as a whole: single samples cannot be weighted.
    """

    def transport(x: Tensor, y: Tensor) -> Tensor:
        plan, cost = transport_plan(x, y, regularisation, iterations, tolerance)
        return (plan * cost).sum()

    return transport(a, b) - (transport(a, a) + transport(b, b)) / 2


class SinkhornDivergence(Term):
    """``sinkhorn_divergence`` of two batches of logits, the student's and the teacher's: one value ().

    Made for ``.between(view)``, where the teacher's are the student's own for the batch at hand: the gradient passes
    through both. A source's logits have none.
    """

    reads_labels = False

    def __init__(self, regularisation: float = 1.0, iterations: int = 50, tolerance: float = 0.1) -> None:
        super().__init__()
        if not 0 < regularisation < float("inf"):
            raise ValueError(f"the regularisation must be a finite number above 0, got {regularisation}")
        self.regularisation, self.iterations, self.tolerance = regularisation, iterations, tolerance

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in squared logits."""
        if teacher is None:
            raise ValueError("SinkhornDivergence needs two batches of outputs; stand it .between(view)")
        return sinkhorn_divergence(
            student["logits"], teacher["logits"], self.regularisation, self.iterations, self.tolerance
        )
