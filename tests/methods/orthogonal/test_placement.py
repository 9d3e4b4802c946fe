"""Orthogonal placement: bases and the four losses in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Batch
from tutelage.methods.orthogonal.loss import Form, OrthogonalPlacement, orthogonal_placement
from tutelage.methods.orthogonal.surgery.orthogonal import Kind, cosines, orthonormal_basis
from tutelage.models.outputs import Outputs

KINDS: tuple[Kind, ...] = ("identity", "random", "hadamard")
FORMS: tuple[Form, ...] = ("direction", "squares", "cross_entropy", "energy")


def loss(features: Tensor, targets: Tensor, basis: Tensor, form: Form, scale: float = 16.0) -> Tensor:
    return orthogonal_placement(cosines(features, basis), targets, form, scale)


def made_up(samples: int = 6, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, size, generator=generator, dtype=torch.float64), torch.arange(samples) % 4


# --- bases


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("classes", "features"), [(4, 8), (8, 8), (10, 64), (100, 512)])
def test_bases_are_orthonormal(kind: Kind, classes: int, features: int) -> None:
    basis = orthonormal_basis(kind, classes, features)
    assert basis.shape == (classes, features)
    assert basis.dtype == torch.float32
    assert torch.linalg.matrix_norm(basis @ basis.T - torch.eye(classes)) < 1e-6 * math.sqrt(classes)


def test_elements_of_the_bases() -> None:
    assert torch.equal(orthonormal_basis("identity", 3, 5), torch.eye(5)[:3])
    assert (orthonormal_basis("hadamard", 7, 16).abs() == 0.25).all()
    first, again, other = (orthonormal_basis("random", 4, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_random_basis_has_no_preferred_direction() -> None:
    """The mean of b_1 over seeds is 0; without the sign of R's diagonal it is not."""
    rows = torch.stack([orthonormal_basis("random", 2, 4, seed)[0] for seed in range(400)])
    assert rows.mean(0).abs().max() < 4 * 0.5 / math.sqrt(400)
    torch.testing.assert_close(rows.square().mean(0), torch.full((4,), 0.25), atol=0.07, rtol=0)


@pytest.mark.parametrize(
    ("kind", "classes", "features", "pieces"),
    [
        ("identity", 10, 8, ("10 classes", "only 8 inputs", "wider network")),
        ("random", 10, 8, ("10 classes", "only 8 inputs", "wider network")),
        ("hadamard", 10, 48, ("power of two", "48", "random basis")),
        ("fourier", 4, 8, ("'fourier'", "hadamard")),
    ],
)
def test_impossible_bases_are_refused(
    kind: Kind, classes: int, features: int, pieces: tuple[str, ...], refused: Any
) -> None:
    with refused(*pieces):
        orthonormal_basis(kind, classes, features)


# --- losses


def test_losses_at_a_place_and_at_another_one() -> None:
    basis = orthonormal_basis("random", 4, 8).double()
    own, other = 5 * basis[[2]], 0.3 * basis[[1]]
    target = torch.tensor([2])
    for form in ("direction", "squares", "energy"):
        assert loss(own, target, basis, form).item() == pytest.approx(0, abs=2e-7)
    assert loss(other, target, basis, "direction").item() == pytest.approx(2, abs=1e-6)
    assert loss(other, target, basis, "squares").item() == pytest.approx(2, abs=1e-6)
    assert loss(other, target, basis, "energy").item() == pytest.approx(-math.log(1e-8), abs=1e-5)
    assert loss(-own, target, basis, "energy").item() == pytest.approx(0, abs=2e-7)
    assert loss(-own, target, basis, "direction").item() == pytest.approx(4, abs=1e-6)
    expected = math.log(math.exp(16) + 3) - 16
    assert loss(own, target, basis, "cross_entropy").item() == pytest.approx(expected, abs=1e-6)


def test_losses_outside_of_the_span_of_the_places() -> None:
    basis = orthonormal_basis("identity", 3, 5).double()
    features, target = torch.eye(5).double()[[4]], torch.tensor([1])
    assert loss(features, target, basis, "direction").item() == 2
    assert loss(features, target, basis, "squares").item() == 1
    assert cosines(features, basis).abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_loss_equals_plain_loops(form: Form) -> None:
    features, targets = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    expected = []
    for row, label in zip(features.tolist(), targets.tolist(), strict=True):
        length = math.sqrt(sum(x * x for x in row))
        u = [sum(b * x for b, x in zip(place, row, strict=True)) / length for place in basis.tolist()]
        if form == "direction":
            value = sum((x / length - b) ** 2 for x, b in zip(row, basis[label].tolist(), strict=True))
        elif form == "squares":
            value = sum((score - (c == label)) ** 2 for c, score in enumerate(u))
        elif form == "cross_entropy":
            value = -math.log(math.exp(9 * u[label]) / sum(math.exp(9 * score) for score in u))
        else:
            value = -math.log(u[label] ** 2 + 1e-8)
        expected.append(value)
    assert loss(features, targets, basis, form, 9.0).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_length_of_features_does_not_matter_and_gradients_are_orthogonal_to_them(form: Form) -> None:
    features, targets = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    features.requires_grad_()
    value = loss(features, targets, basis, form)
    torch.testing.assert_close(loss(5 * features, targets, basis, form), value)
    (grad,) = torch.autograd.grad(value.sum(), features)
    assert (features * grad).sum(1).abs().max() < 1e-6
    assert grad.abs().max() > 0.1
    assert torch.autograd.gradcheck(lambda h: loss(h, targets, basis, form), features)


@pytest.mark.parametrize("form", FORMS)
def test_rotation_of_features_and_places_does_not_matter(form: Form) -> None:
    features, targets = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q
    torch.testing.assert_close(
        loss(features @ rotation, targets, basis @ rotation, form), loss(features, targets, basis, form)
    )


def test_squares_equal_direction_with_as_many_classes_as_features() -> None:
    features, targets = made_up(size=4)
    basis = orthonormal_basis("random", 4, 4).double()
    direction = loss(features, targets, basis, "direction")
    torch.testing.assert_close(loss(features, targets, basis, "squares"), direction, atol=1e-6, rtol=0)


def test_energies_and_residual_add_up_to_one() -> None:
    features, _ = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    residual = features - features @ basis.T @ basis
    shares = residual.square().sum(1) / features.square().sum(1)
    torch.testing.assert_close(
        cosines(features, basis).square().sum(1) + shares, torch.ones(6).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("form", FORMS)
def test_features_of_length_zero_are_finite_and_have_no_gradient(form: Form) -> None:
    features = torch.zeros(2, 8, requires_grad=True)
    value = loss(features, torch.tensor([0, 1]), orthonormal_basis("identity", 4, 8), form)
    assert value.isfinite().all()
    (grad,) = torch.autograd.grad(value.sum(), features)
    assert (grad == 0).all()


def test_soft_labels(refused: Any) -> None:
    features, targets = made_up()
    u = cosines(features, orthonormal_basis("random", 4, 8).double())
    soft = F.one_hot(targets, 4).double()
    mixed = 0.5 * soft + 0.5 * soft.roll(1, 0)
    for form in ("squares", "cross_entropy"):
        torch.testing.assert_close(orthogonal_placement(u, soft, form), orthogonal_placement(u, targets, form))
    torch.testing.assert_close(orthogonal_placement(u, mixed, "squares"), (u - mixed).square().sum(1))
    for form in ("direction", "energy"):
        with refused(f"'{form}'", "soft", "squares or cross_entropy"):
            orthogonal_placement(u, mixed, form)


@pytest.mark.parametrize("form", FORMS)
def test_samples_without_a_label_have_no_loss(form: Form, batch_of: Callable[[Tensor], Batch]) -> None:
    values = torch.rand(3, 4, requires_grad=True)
    term = OrthogonalPlacement(form)
    value = term(Outputs(None, {"cosines": values}), None, batch_of(torch.tensor([1, -1, 2])))
    assert value.shape == (3,)
    assert value[1] == 0
    (grad,) = torch.autograd.grad(value.sum(), values)
    assert (grad[1] == 0).all()
    assert (grad[0] != 0).any()


def test_unknown_form_is_refused(refused: Any) -> None:
    with refused("'angle'", "direction", "energy"):
        orthogonal_placement(torch.zeros(1, 2), torch.tensor([0]), "angle")  # type: ignore[arg-type]
