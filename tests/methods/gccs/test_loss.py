"""The Gaussian simplex loss: closed forms, torch's KL divergence, known moments, classes that do not count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.methods.gccs.loss import GaussianSimplex, gaussian_simplex
from tutelage.models.outputs import Outputs


def normal(samples: int, size: int = 10, seed: int = 0) -> Tensor:
    return torch.randn(samples, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs_of_class(label: int, samples: int) -> Tensor:
    return torch.full((samples,), label)


@pytest.mark.parametrize(
    ("shift", "factor", "expected"), [(0.0, 1.0, 0.0), (2.0, 1.0, 4.0), (0.0, 2.0, 16.137)], ids=str
)
def test_known_values(shift: float, factor: float, expected: float) -> None:
    outputs = factor * normal(200_000)
    outputs[:, 3] += 70
    outputs[:, 5] += shift
    value = gaussian_simplex(outputs, outputs_of_class(3, len(outputs)), tail=0.0)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, abs=0.03)


def mixed_outputs(samples: int = 40, size: int = 4) -> tuple[Tensor, Tensor]:
    labels = torch.arange(samples) % size
    outputs = normal(samples, size) @ normal(size, size, seed=1) + 3 * torch.eye(size).double()[labels] + 1
    return outputs, labels


@pytest.mark.parametrize("full", [False, True])
def test_equals_twice_torch_kl_divergence(full: bool) -> None:
    outputs, labels = mixed_outputs()
    expected = []
    for label in range(4):
        members = outputs[labels == label]
        covariance = members.T.cov(correction=0)
        if not full:
            covariance = covariance.diagonal().diag()
        distribution = MultivariateNormal(members.mean(0), covariance)
        target = MultivariateNormal(7.0 * torch.eye(4).double()[label], torch.eye(4).double())
        expected.append(2 * kl_divergence(distribution, target))
    value = gaussian_simplex(outputs, labels, 7.0, 0.0, full=full)
    torch.testing.assert_close(value, torch.stack(expected).mean(), rtol=1e-5, atol=1e-5)


def test_full_covariance_needs_enough_samples() -> None:
    """8 = 2 D samples of each class are enough, 7 are not; the gradient is finite in both cases."""
    for samples, equal in ((32, False), (28, True)):
        outputs, labels = mixed_outputs(samples)
        outputs.requires_grad_()
        values = [gaussian_simplex(outputs, labels, 7.0, full=full) for full in (True, False)]
        assert torch.equal(*values) == equal
        values[0].backward()
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(
    ("draw", "excess"),
    [
        (torch.distributions.Normal(0.0, 1.0), 0.0),
        (torch.distributions.Laplace(0.0, 1.0), 3.0),
        (torch.distributions.Uniform(-1.0, 1.0), 1.2),
    ],
    ids=["Gaussian", "Laplace", "uniform"],
)
def test_kurtosis_of_known_distributions(draw: torch.distributions.Distribution, excess: float) -> None:
    torch.manual_seed(0)
    outputs = draw.sample((400_000, 2)).double()
    labels = outputs_of_class(1, len(outputs))
    tail = gaussian_simplex(outputs, labels, tail=1.0) - gaussian_simplex(outputs, labels, tail=0.0)
    assert tail.item() / 2 == pytest.approx(excess, abs=0.1)


def reference_loss(outputs: Tensor, labels: Tensor, scale: float, tail: float) -> float:
    total, classes = 0.0, 0
    for label in range(outputs.shape[1]):
        rows = outputs[labels == label].tolist()
        if len(rows) < 3:
            continue
        classes += 1
        for d, column in enumerate(zip(*rows, strict=True)):
            mean = sum(column) / len(column)
            variance = sum((z - mean) ** 2 for z in column) / len(column)
            fourth_moment = sum((z - mean) ** 4 for z in column) / len(column)
            total += variance - torch.tensor(variance).log().item() - 1 + (mean - scale * (d == label)) ** 2
            total += tail * abs(fourth_moment / variance**2 - 3)
    return total / classes


def test_equals_plain_loops_and_ignores_small_classes() -> None:
    outputs, labels = mixed_outputs(10)  # 3, 3, 2 and 2 of the four classes
    value = gaussian_simplex(outputs, labels, 7.0, 0.2)
    assert value.item() == pytest.approx(reference_loss(outputs, labels, 7.0, 0.2), rel=1e-6)
    outputs.requires_grad_()
    gaussian_simplex(outputs, labels).backward()
    assert outputs.grad is not None
    assert (outputs.grad[labels >= 2] == 0).all()
    assert (outputs.grad[labels < 2] != 0).any()


def test_invariant_to_permuted_classes() -> None:
    outputs, labels = mixed_outputs()
    order = torch.tensor([2, 0, 3, 1])
    permuted = torch.empty_like(outputs)
    permuted[:, order] = outputs
    torch.testing.assert_close(gaussian_simplex(permuted, order[labels]), gaussian_simplex(outputs, labels))


def test_loss_is_nonnegative() -> None:
    for seed in range(20):
        outputs = (1 + seed) * 0.2 * normal(30, 3, seed)
        assert gaussian_simplex(outputs, torch.arange(30) % 3, scale=0.1 * seed, tail=0.0) >= 0


def test_vertices_are_equidistant_and_nearest_is_argmax() -> None:
    vertices = 70 * torch.eye(10).double()
    assert torch.pdist(vertices).sub(70 * 2**0.5).abs().max() < 1e-9
    outputs = 50 * normal(500)
    assert torch.equal(torch.cdist(outputs, vertices).argmin(1), outputs.argmax(1))


def test_constant_outputs_have_finite_large_loss() -> None:
    outputs = torch.ones(12, 3, requires_grad=True)
    value = gaussian_simplex(outputs, torch.arange(12) % 3, scale=1.0)
    value.backward()
    assert 20 < value < 100
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [-1, -1, -1, -1]], ids=str)
def test_loss_is_zero_if_no_class_counts(labels: list[int]) -> None:
    outputs = normal(len(labels), 3).requires_grad_()
    value = gaussian_simplex(outputs, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert outputs.grad is not None
    assert (outputs.grad == 0).all()


def test_samples_without_a_label_and_soft_labels() -> None:
    outputs, labels = mixed_outputs()
    partial_labels = labels.clone()
    partial_labels[20:] = -1
    torch.testing.assert_close(gaussian_simplex(outputs, partial_labels), gaussian_simplex(outputs[:20], labels[:20]))
    soft = 0.6 * torch.eye(4)[labels] + 0.1
    assert torch.equal(gaussian_simplex(outputs, soft), gaussian_simplex(outputs, labels))


def test_gradcheck() -> None:
    outputs, labels = mixed_outputs(12)
    outputs = outputs[:, :3].clone().requires_grad_()
    for full in (False, True):
        assert torch.autograd.gradcheck(lambda z: gaussian_simplex(z, labels % 2, 2.0, full=full), outputs)  # noqa: B023


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_fourth_powers_beyond_range_of_float16(half: torch.dtype) -> None:
    outputs, labels = mixed_outputs()
    outputs = (30 * outputs).to(half)
    value = gaussian_simplex(outputs, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(gaussian_simplex(outputs.double(), labels).item(), rel=1e-4)


def test_nan_is_not_hidden() -> None:
    outputs, labels = mixed_outputs()
    outputs[3, 1] = float("nan")
    assert gaussian_simplex(outputs, labels).isnan()


def test_the_term(batch_of: Callable[[Tensor], Batch]) -> None:
    outputs, labels = mixed_outputs()
    term = GaussianSimplex("vertices", 7.0, 0.5)
    assert (term.roles, term.teacher_roles) == (("vertices",), ())
    value = term(Outputs(None, {"vertices": outputs}), None, batch_of(labels))
    assert torch.equal(value, gaussian_simplex(outputs, labels, 7.0, 0.5))
    with pytest.raises(TutelageError, match="needs the batch"):
        term(Outputs(None, {"vertices": outputs}), None, None)
