"""Local clustering: known values, plain loops, the threshold, and batches without neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.methods.mean_teacher_lc.local_clustering import LocalClustering, local_clustering, mean_squared_distances
from tutelage.models.outputs import Outputs

INFINITY = float("inf")


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_loss(a: Tensor, b: Tensor, threshold: float) -> float:
    top, count = 0.0, 0
    for row in a.flatten(1).tolist():
        for other in b.flatten(1).tolist():
            distance = sum((x - y) ** 2 for x, y in zip(row, other, strict=True)) / len(row)
            if distance <= threshold:
                top, count = top + distance * math.exp(-distance / threshold), count + 1
    return top / max(count, 1)


def pair(distance: float) -> tuple[Tensor, Tensor]:
    """Two one-dimensional features at this distance."""
    return torch.zeros(1, 1).double(), torch.tensor([[math.sqrt(distance)]]).double().requires_grad_()


# --- the function


def test_known_value() -> None:
    """Distances 1 and 9, one pair within tau. With a sum over dimensions it would be 2 exp(-1/2) = 1.2131."""
    a, b = torch.zeros(1, 2), torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert mean_squared_distances(a, b).tolist() == [[pytest.approx(1), pytest.approx(9)]]
    assert local_clustering(a, b, 4.0).item() == pytest.approx(math.exp(-1 / 4), abs=1e-6)
    assert local_clustering(2**0.5 * a, 2**0.5 * b, 4.0).item() == pytest.approx(1.2131, abs=1e-4)


@pytest.mark.parametrize("threshold", [0.3, 1.0, 2.0, 40.0])
@pytest.mark.parametrize(("n", "m"), [(3, 5), (1, 1), (6, 2)])
def test_equals_plain_loops(threshold: float, n: int, m: int) -> None:
    a, b = features(n, 4), features(m, 4, seed=1)
    assert local_clustering(a, b, threshold).item() == pytest.approx(reference_loss(a, b, threshold), rel=1e-12)
    assert local_clustering(b, b, threshold).item() == pytest.approx(
        reference_loss(b, b, threshold), rel=1e-12, abs=1e-15
    )


def test_maps_are_flattened_and_distances_equal_cdist() -> None:
    a, b = features(3, 2, 2, 2), features(4, 2, 2, 2, seed=1)
    assert local_clustering(a, b, 2.0).item() == pytest.approx(reference_loss(a, b, 2.0), rel=1e-12)
    expected = torch.cdist(a.flatten(1), b.flatten(1)).square() / 8
    torch.testing.assert_close(mean_squared_distances(a.flatten(1), b.flatten(1)), expected)


def test_distances_far_from_origin_are_precise() -> None:
    """Without centring, ||a||^2 + ||b||^2 - 2ab loses all digits here in float32."""
    a, b = features(3, 4).float(), features(5, 4, seed=1).float()
    distant = mean_squared_distances(a + 2000, b + 2000)
    torch.testing.assert_close(distant, mean_squared_distances(a, b), rtol=2e-3, atol=2e-4)
    assert (mean_squared_distances(a + 1e5, a + 1e5) >= 0).all()


def test_within_one_set_pairs_count_twice_and_samples_once() -> None:
    """Three features at 0, 1 and 2: distances 1, 1, 4, all within tau; 9 in the denominator."""
    line = torch.tensor([[0.0], [1.0], [2.0]])
    expected = 2 * (2 * math.exp(-1 / 8) + 4 * math.exp(-4 / 8)) / 9
    assert local_clustering(line, line, 8.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("distance", "slope"), [(1e-6, 1.0), (1.0, math.exp(-1 / 4) * 3 / 4), (4.0, 0.0), (4.1, 0.0)])
def test_gradient_vanishes_at_the_threshold(distance: float, slope: float) -> None:
    """The derivative by the distance is exp(-d / tau) (1 - d / tau), by the feature 2 sqrt(d) times that."""
    a, b = pair(distance)
    local_clustering(a, b, 4.0).backward()
    assert b.grad is not None
    assert b.grad.item() == pytest.approx(slope * 2 * math.sqrt(distance), rel=1e-5, abs=1e-12)
    if distance > 4:
        assert b.grad.item() == 0


def test_a_pair_at_the_threshold_is_in_the_mask() -> None:
    a, b = torch.zeros(1, 1), torch.tensor([[2.0], [1.0]])
    assert local_clustering(a, b, 4.0).item() == pytest.approx((4 * math.exp(-1) + math.exp(-1 / 4)) / 2)


def test_equal_features_give_zero_without_a_gradient() -> None:
    equal = torch.full((4, 3), 0.7, requires_grad=True)
    value = local_clustering(equal, equal, 0.5)
    value.backward()
    assert value.item() == 0
    assert equal.grad is not None
    assert equal.grad.abs().max() == 0


@pytest.mark.parametrize("sizes", [(2, 3), (0, 3), (2, 0)])
def test_loss_without_neighbours_is_zero(sizes: tuple[int, int]) -> None:
    """The authors' code divides by zero here."""
    a = features(sizes[0], 4).requires_grad_()
    b = (features(sizes[1], 4, seed=1) + 100).requires_grad_()
    value = local_clustering(a, b, 1e-3)
    value.backward()
    assert value.item() == 0
    for side in (a, b):
        assert side.grad is not None
        assert (side.grad == 0).all()


def test_gradients_of_a_pair_are_opposite() -> None:
    a, b = features(3, 4).requires_grad_(), features(5, 4, seed=1).requires_grad_()
    local_clustering(a, b, 2.0).backward()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad.sum(0), -b.grad.sum(0))
    assert a.grad.abs().max() > 1e-3


def test_gradient_step_reduces_distance_of_neighbours() -> None:
    a = 0.3 * features(6, 4)
    a.requires_grad_()
    local_clustering(a, a, 3.0).backward()
    assert a.grad is not None
    after = a.detach() - 0.1 * a.grad
    assert torch.pdist(after).mean() < torch.pdist(a.detach()).mean()


def test_gradcheck() -> None:
    a, b = features(3, 4).requires_grad_(), features(4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: local_clustering(a, b, 2.5), (a, b))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_squares_beyond_range_of_float16(half: torch.dtype) -> None:
    a, b = (300 * features(3, 4)).to(half), (300 * features(4, 4, seed=1)).to(half)
    value = local_clustering(a, b, 2e5)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference_loss(a.double(), b.double(), 2e5), rel=1e-4)


def test_nan_is_not_hidden() -> None:
    a = features(3, 4)
    a[1, 2] = float("nan")
    assert local_clustering(a, features(4, 4, seed=1), 1.0).isnan()
    assert local_clustering(a, a, 1.0).isnan()


# --- the term


def value(term: LocalClustering, labelled: Tensor, unlabelled: Tensor) -> Tensor:
    return term(Outputs(None, {"embedding": unlabelled}), Outputs(None, {"embedding": labelled}), None)


def test_pairs_of_two_labelled_samples_are_not_used() -> None:
    labelled_features, unlabelled_features = features(2, 4), features(3, 4, seed=1)
    result = value(LocalClustering(2.0), labelled_features, unlabelled_features)
    assert result.shape == ()
    assert result.item() == pytest.approx(
        reference_loss(labelled_features, unlabelled_features, 2.0)
        + reference_loss(unlabelled_features, unlabelled_features, 2.0),
        rel=1e-12,
    )


@pytest.mark.parametrize("quantile", [0.01, 0.1, 0.3, 1.0])
def test_the_quantile_is_of_the_distances_between_different_unlabelled_samples(quantile: float) -> None:
    f = features(9, 4)
    distances = sorted((torch.pdist(f[2:]).square() / 4).tolist())
    threshold = distances[math.ceil(quantile * len(distances)) - 1]
    expected = reference_loss(f[:2], f[2:], threshold * (1 + 1e-12)) + reference_loss(
        f[2:], f[2:], threshold * (1 + 1e-12)
    )
    assert value(LocalClustering(None, quantile), f[:2], f[2:]).item() == pytest.approx(expected, rel=1e-6)


def test_quantile_makes_loss_scale_equivariant() -> None:
    labelled_features, unlabelled_features = features(2, 4), features(7, 4, seed=1)
    torch.testing.assert_close(
        value(LocalClustering(), 50 * labelled_features, 50 * unlabelled_features),
        2500 * value(LocalClustering(), labelled_features, unlabelled_features),
    )
    fixed = LocalClustering(2.0)
    assert not torch.isclose(
        value(fixed, 50 * labelled_features, 50 * unlabelled_features),
        2500 * value(fixed, labelled_features, unlabelled_features),
    )


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("equal", [True, False])
def test_few_or_equal_unlabelled_samples_are_finite(count: int, equal: bool) -> None:
    f = (torch.ones(4, 3) if equal else features(4, 3).float()).requires_grad_()
    result = value(LocalClustering(), f[: 4 - count], f[4 - count :])
    result.backward()
    assert result.isfinite()
    assert f.grad is not None
    assert f.grad.isfinite().all()


def test_gradients_reach_both_batches_and_do_not_flow_through_the_quantile() -> None:
    labelled_features, unlabelled_features = features(2, 4), features(7, 4, seed=1)
    distances = sorted((torch.pdist(unlabelled_features).square() / 4).tolist())
    fixed = LocalClustering(distances[math.ceil(0.1 * len(distances)) - 1] * (1 + 1e-9))
    gradients = []
    for term in (LocalClustering(), fixed):
        sides = [side.clone().requires_grad_() for side in (0.3 * labelled_features, unlabelled_features)]
        gradients.append(torch.autograd.grad(value(term, *sides), sides))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        assert one.abs().max() > 1e-3


def test_roles_and_invalid_settings_of_term() -> None:
    term = LocalClustering()
    assert term.roles == term.teacher_roles == ("embedding",)
    assert list(term.parameters()) == []
    with pytest.raises(TutelageError, match="two batches"):
        term(Outputs(None, {"embedding": features(2, 2)}), None, None)
    for setting in (0.0, -1.0, INFINITY, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            LocalClustering(setting)
    for setting in (0.0, 1.5):
        with pytest.raises(ValueError, match="quantile"):
            LocalClustering(None, setting)
