"""The Sinkhorn divergence: comparison with POT and geomloss, plain loops, invariances and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.losses import sinkhorn_divergence
from tutelage.models.outputs import Outputs
from tutelage.terms import SinkhornDivergence
from tutelage.terms.sinkhorn import transport_plan


def logits(scale: float = 1.0, seed: int = 0, size: int = 64) -> tuple[Tensor, Tensor]:
    """Gaussian logits of a batch, and the same plus noise of 0.3 times the scale."""
    generator = torch.Generator().manual_seed(seed)
    clean = scale * torch.randn(size, 10, generator=generator, dtype=torch.float64)
    return clean, clean + 0.3 * scale * torch.randn(size, 10, generator=generator, dtype=torch.float64)


def transport_by_hand(a: Tensor, b: Tensor, sigma: float, iterations: int, tolerance: float) -> float:
    source_rows, target_rows = a.tolist(), b.tolist()
    cost = [[sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for y in target_rows] for x in source_rows]
    u, v = [0.0] * len(source_rows), [0.0] * len(target_rows)

    def plan(i: int, j: int) -> float:
        return math.exp((u[i] + v[j] - cost[i][j]) / sigma)

    for _ in range(iterations):
        new = [
            u[i] + sigma * (math.log(1 / len(source_rows)) - math.log(sum(plan(i, j) for j in range(len(target_rows)))))
            for i in range(len(source_rows))
        ]
        change, u = sum(abs(p - q) for p, q in zip(new, u, strict=True)), new
        v = [
            v[j] + sigma * (math.log(1 / len(target_rows)) - math.log(sum(plan(i, j) for i in range(len(source_rows)))))
            for j in range(len(target_rows))
        ]
        if change < tolerance:
            break
    return sum(plan(i, j) * cost[i][j] for i in range(len(source_rows)) for j in range(len(target_rows)))


@pytest.mark.parametrize(("iterations", "tolerance"), [(1, 0.0), (50, 0.1), (50, 3.0), (4, 0.0)])
def test_equals_plain_loops_and_stops_at_the_same_iteration(iterations: int, tolerance: float) -> None:
    (a, _), (_, b) = logits(0.6, size=6), logits(0.6, seed=1, size=4)
    expected = [transport_by_hand(x, y, 0.7, iterations, tolerance) for x, y in ((a, b), (a, a), (b, b))]
    value = sinkhorn_divergence(a, b, 0.7, iterations, tolerance)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected[0] - (expected[1] + expected[2]) / 2, rel=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_equals_pot(scale: float) -> None:
    pot = pytest.importorskip("ot")
    a, b = logits(scale)
    expected = float(
        pot.bregman.empirical_sinkhorn_divergence(a, b, reg=1.0, numIterMax=5000, stopThr=1e-6, warn=False)
    )
    assert sinkhorn_divergence(a, b, 1.0, 5000, 1e-6).item() == pytest.approx(expected, rel=1e-4)
    assert sinkhorn_divergence(a, b).item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_differs_from_entropic_sinkhorn_divergence(scale: float) -> None:
    """With the entropy, it is 2 geomloss at blur sqrt(sigma / 2), whose cost has a factor 1/2: 0.82 and 0.009 here."""
    geomloss = pytest.importorskip("geomloss")
    a, b = logits(scale)
    entropic = 2 * geomloss.SamplesLoss("sinkhorn", p=2, blur=math.sqrt(0.5), scaling=0.95)(a, b).item()

    def regularized_distance(x: Tensor, y: Tensor) -> float:
        plan, cost = transport_plan(x, y, 1.0, 2000, 1e-6)
        return float((plan * cost).sum() + (plan * (plan * len(x) * len(y)).log()).sum())

    with_entropy = regularized_distance(a, b) - (regularized_distance(a, a) + regularized_distance(b, b)) / 2
    assert with_entropy == pytest.approx(entropic, rel=0.02)
    assert sinkhorn_divergence(a, b).item() > 1.04 * entropic


def test_properties_of_a_divergence() -> None:
    a, b = logits(0.5)
    value = sinkhorn_divergence(a, b)
    assert value > 0.05
    assert sinkhorn_divergence(a, a).item() == 0
    assert sinkhorn_divergence(b, a, tolerance=1e-9, iterations=500).item() == pytest.approx(
        sinkhorn_divergence(a, b, tolerance=1e-9, iterations=500).item(), rel=1e-6
    )
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    assert sinkhorn_divergence(a, b[order]).item() == pytest.approx(value.item(), rel=1e-9)  # unlike logit pairing
    assert sinkhorn_divergence(a + 5, b + 5).item() == pytest.approx(value.item(), rel=1e-9)
    value_of_shift = sinkhorn_divergence(a, a + 1.0, tolerance=1e-9, iterations=2000)
    assert value_of_shift.item() == pytest.approx(10, rel=1e-4)  # a shift by d costs ||d||^2


def test_marginal_error_of_plan() -> None:
    a, b = logits(0.5)
    plan, cost = transport_plan(a, b)
    torch.testing.assert_close(cost, (a[:, None] - b).square().sum(2))
    torch.testing.assert_close(plan.sum(0), torch.full((64,), 1 / 64).double())
    marginal_errors = [
        float((transport_plan(a, b, 1.0, n, 0.0)[0].sum(1) - 1 / 64).abs().sum()) for n in (1, 5, 50, 500)
    ]
    assert marginal_errors == sorted(marginal_errors, reverse=True)
    assert marginal_errors[-1] < 1e-6 < marginal_errors[0]


def test_gradcheck_through_all_iterations_to_both_sides() -> None:
    a, b = (side.requires_grad_() for side in logits(0.4, size=4))
    assert torch.autograd.gradcheck(lambda x, y: sinkhorn_divergence(x, y, iterations=6, tolerance=0.0), (a, b))


def test_iterations_after_convergence_have_no_gradient() -> None:
    """The masked iterations that run on a GPU change neither value nor gradient."""
    a, b = (side.requires_grad_() for side in logits(0.3))
    gradients = [torch.autograd.grad(sinkhorn_divergence(a, b, iterations=n), (a, b)) for n in (50, 60)]
    for default_gradient, long_gradient in zip(*gradients, strict=True):
        assert torch.equal(default_gradient, long_gradient)
        assert default_gradient.abs().max() > 0


def test_equal_batches_have_zero_value_and_gradient() -> None:
    a = logits()[0].requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(a, a.detach()), a)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 0.05  # of an unrolled loop that has not converged


@pytest.mark.parametrize("case", ["one sample", "all equal", "huge", "far apart"])
def test_extreme_batches_are_finite(case: str) -> None:
    a, b = (side.float() for side in logits())
    a, b = {
        "one sample": (a[:1], b[:1]),
        "all equal": (torch.ones(8, 10), torch.ones(8, 10)),
        "huge": (1e3 * a, 1e3 * a + 30 * (b - a)),
        "far apart": (a, b + 1e4),
    }[case]
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = sinkhorn_divergence(a, b)
    value.backward()
    assert value.isfinite()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    if case == "one sample":
        assert value.item() == pytest.approx((a - b).square().sum().item(), rel=1e-5)
    if case == "huge":  # the plan pairs nearest points, as in squared logit pairing
        assert value.item() == pytest.approx((a - b).square().sum(1).mean().item(), rel=1e-3)


def test_nan_is_not_hidden() -> None:
    a, b = logits()
    a[3, 2] = float("nan")
    assert sinkhorn_divergence(a, b).isnan()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    a, b = (side.to(half) for side in logits())
    value = sinkhorn_divergence(a, b)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(sinkhorn_divergence(a.double(), b.double()).item(), rel=1e-3)


def test_the_term_under_autocast() -> None:
    a, b = (side.float() for side in logits())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SinkhornDivergence(2.0)(Outputs(a), Outputs(b), None)
    assert torch.equal(value, sinkhorn_divergence(a, b, 2.0))


def test_settings_of_term() -> None:
    for setting in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(TutelageError, match="regularisation must be"):
            SinkhornDivergence(setting)
    with pytest.raises(TutelageError, match="two batches"):
        SinkhornDivergence()(Outputs(torch.zeros(2, 3)), None, None)
