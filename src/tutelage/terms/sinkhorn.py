"""The Sinkhorn divergence of two batches: Bouniot, Audigier, Loesch 2020, arXiv 2102.03156."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def transport_plan(
    a: Tensor, b: Tensor, regularisation: float = 1.0, iterations: int = 50, tolerance: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The entropic transport plan between two point clouds with uniform weights, and the cost matrix.

    C_ij = ||a_i - b_j||^2, pi = exp((u_i + v_j - C_ij) / sigma). The iterations alternate u <- u + sigma (log 1/n -
    log sum_j pi_ij) and the same for v with 1/m and the sum over i, starting from 0. They stop once an iteration
    changes u by less than ``tolerance`` in total (L1), as in the authors' code; on a GPU the remaining iterations still
    run, without effect. The columns of pi then sum to 1/m; the deviation of its rows from 1/n shows how far it is from
    the optimum. If squared distances are far above sigma, the iterations do not converge, and pi pairs nearest points.

    Args:
        a, b: (n, D) and (m, D); gradients flow through all iterations to both.
        regularisation: sigma > 0, in the unit of the cost.
        iterations: the maximum number of iterations.
        tolerance: the change of u at which to stop.

    Returns:
        pi (n, m), which sums to 1, and C (n, m).
    """
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    u, v = a.new_zeros(len(a), 1), a.new_zeros(1, len(b))
    active = torch.ones((), dtype=torch.bool, device=a.device)
    for _ in range(iterations):
        step = regularisation * active.to(cost)
        change = step * (-math.log(len(a)) - ((u + v - cost) / regularisation).logsumexp(1, True))
        u = u + change
        v = v + step * (-math.log(len(b)) - ((u + v - cost) / regularisation).logsumexp(0, True))
        active = active & ~(change.abs().sum() < tolerance)
        if active.device.type == "cpu" and not active:  # reading it from another device would wait for the device
            break
    return ((u + v - cost) / regularisation).exp(), cost


@full_precision
def sinkhorn_divergence(
    a: Tensor, b: Tensor, regularisation: float = 1.0, iterations: int = 50, tolerance: float = 0.1
) -> Tensor:
    """The Sinkhorn divergence of two point clouds, S(a, b) = W(a, b) - W(a, a) / 2 - W(b, b) / 2.

    W = <pi, C> with the plan and the cost of ``transport_plan``. As in the authors' code, it is the transport cost
    alone, without the entropy of the plan that the usual definition adds. S is 0 for equal clouds and does not depend
    on the order of the points.

    Args:
        a, b: (n, D) and (m, D); gradients reach both.
        regularisation, iterations, tolerance: as in ``transport_plan``.

    Returns:
        (), in the squared unit of the points. It is one value for the whole batch: samples cannot be weighted.
    """

    def transport(x: Tensor, y: Tensor) -> Tensor:
        plan, cost = transport_plan(x, y, regularisation, iterations, tolerance)
        return (plan * cost).sum()

    return transport(a, b) - (transport(a, a) + transport(b, b)) / 2


class SinkhornDivergence(Term):
    """``sinkhorn_divergence`` of the student's and the teacher's logits for a batch: one value ().

    It is meant for ``.between(view, other)``, where the student's own logits for the batch of ``other`` take the
    teacher's place and gradients flow through both. The logits of a source have no gradient.
    """

    reads_labels = False

    def __init__(self, regularisation: float = 1.0, iterations: int = 50, tolerance: float = 0.1) -> None:
        super().__init__()
        if not 0 < regularisation < float("inf"):
            raise TutelageError(f"the regularisation must be a finite number above 0, got {regularisation}")
        self.regularisation, self.iterations, self.tolerance = regularisation, iterations, tolerance

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in squared logits."""
        target = self.required(teacher, "two batches of outputs", "use it with .between(...)")["logits"]
        return sinkhorn_divergence(student["logits"], target, self.regularisation, self.iterations, self.tolerance)
