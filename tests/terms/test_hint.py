"""FitNets' hints: known values, plain loops, and the choice of regressor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.losses import hint_loss, regressor
from tutelage.models.outputs import Outputs
from tutelage.terms import Hint

Shape = tuple[int, int, int]


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs_of(guided: Tensor, hint: Tensor) -> tuple[Outputs, Outputs]:
    return Outputs(None, {"g": guided}), Outputs(None, {"h": hint})


def build_term(guided: Tensor, hint: Tensor, **options: Any) -> Hint:
    torch.manual_seed(0)
    term = Hint("g", "h", **options)
    term.build(*outputs_of(guided, hint))
    return term


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 7, 2, 5), (3, 1, 1, 1)])
def test_known_values(shape: tuple[int, ...]) -> None:
    """Zeros against ones: 1/2 for each element, summed; exactly 1 as a mean; C H W / 2 between the two."""
    zeros, ones, elements = torch.zeros(shape), torch.ones(shape), torch.ones(shape)[0].numel()
    paper, mean = (
        build_term(zeros, ones, reduction=kind)(*outputs_of(zeros, ones), None) for kind in ("paper", "mean")
    )
    assert paper.tolist() == [0.5 * elements] * shape[0]
    assert mean.tolist() == [1.0] * shape[0]
    assert torch.equal(hint_loss(zeros, ones), paper)


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
def test_equals_plain_loops_with_convolution(reduction: str) -> None:
    guided, hint = features(2, 3, 4, 3), features(2, 5, 3, 3, seed=1)
    term = build_term(guided, hint, reduction=reduction)
    assert isinstance(term.regressor, nn.Conv2d)
    weight, bias = term.regressor.weight.tolist(), term.regressor.bias.tolist()  # type: ignore[union-attr]
    expected = []
    for v, u in zip(guided.tolist(), hint.tolist(), strict=True):
        total = 0.0
        for c in range(5):
            for y in range(3):
                for x in range(3):
                    r = bias[c] + sum(weight[c][i][k][0] * v[i][y + k][x] for i in range(3) for k in range(2))
                    total += (u[c][y][x] - r) ** 2
        expected.append(total / 2 if reduction == "paper" else total / 45)
    if reduction == "relative":
        squares = [x * x for x in hint.flatten().tolist()]
        expected = [value / (sum(squares) / 90) for value in expected]
    assert term(*outputs_of(guided, hint), None).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(4, 3, 4, 4), (4, 7, 1, 2), (4, 6), (1, 2, 2, 2)])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
def test_relative_loss_is_one_on_average_for_zero_prediction(scale: float, shape: tuple[int, ...]) -> None:
    zeros, hint = torch.zeros(shape).double(), scale * features(*shape)
    value = build_term(zeros, hint, reduction="relative")(*outputs_of(zeros, hint), None)
    assert value.shape == shape[:1]
    assert value.mean().item() == pytest.approx(1)
    if len(value) > 1:
        assert value.std() > 0.05  # the scale is that of the batch, not of each sample
    torch.testing.assert_close(value, hint.square().flatten(1).mean(1) / hint.square().mean())


@pytest.mark.parametrize(("reduction", "factor"), [("relative", 1), ("paper", 100), ("mean", 100)])
def test_only_relative_loss_is_scale_invariant(reduction: str, factor: float) -> None:
    guided, hint = features(3, 4, 2, 2), features(3, 4, 2, 2, seed=1)
    term = build_term(guided, hint, reduction=reduction)
    scaled_loss = term(*outputs_of(10 * guided, 10 * hint), None)
    torch.testing.assert_close(scaled_loss, factor * term(*outputs_of(guided, hint), None))


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
def test_a_hint_of_zeros_is_finite_in_value_and_gradient(reduction: str) -> None:
    guided, hint = torch.ones(2, 3, 2, 2, requires_grad=True), torch.zeros(2, 3, 2, 2)
    value = build_term(guided, hint, reduction=reduction)(*outputs_of(guided, hint), None)
    value.sum().backward()
    assert value.tolist() == [6 if reduction == "paper" else 1] * 2
    assert guided.grad is not None
    assert guided.grad.isfinite().all()


@pytest.mark.parametrize(
    ("guided", "hint", "kind", "kernel"),
    [
        ((4, 8, 8), (4, 8, 8), nn.Identity, None),
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, (1, 1)),
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (5, 5)),
        ((4, 8, 8), (4, 8, 5), nn.Conv2d, (1, 4)),
        ((4, 4, 4), (6, 8, 8), nn.ConvTranspose2d, (5, 5)),
        ((4, 8, 3), (4, 8, 5), nn.ConvTranspose2d, (1, 3)),
    ],
)
def test_regressor_maps_one_shape_to_the_other(
    guided: Shape, hint: Shape, kind: type[nn.Module], kernel: tuple[int, int] | None
) -> None:
    module = regressor(guided, hint)
    assert type(module) is kind
    assert getattr(module, "kernel_size", None) == kernel
    assert module(torch.rand(2, *guided)).shape == (2, *hint)


def test_shrinking_one_axis_and_widening_the_other_is_refused(refused: Any) -> None:
    with refused((4, 8, 2), (4, 4, 4), "name other layers"):
        regressor((4, 8, 2), (4, 4, 4))


def test_a_negative_hint_can_be_reached() -> None:
    """With a final ReLU the loss could not fall below 1."""
    guided, hint = features(2, 3, 4, 4).relu(), -torch.ones(2, 5, 4, 4).double()
    term = build_term(guided, hint, reduction="mean")
    optimizer = torch.optim.LBFGS(term.parameters(), max_iter=50)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = term(*outputs_of(guided, hint), None).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert closure() < 1e-6


@pytest.mark.parametrize(
    ("use", "kind"), [("auto", nn.Identity), ("never", nn.Identity), ("always", nn.Conv2d)], ids=str
)
def test_regressor_for_equal_shapes(use: str, kind: type[nn.Module]) -> None:
    maps = features(2, 3, 4, 4), features(2, 3, 4, 4, seed=1)
    term = build_term(*maps, use_regressor=use)
    assert type(term.regressor) is kind
    if kind is nn.Identity:
        assert list(term.parameters()) == []
        assert torch.equal(term(*outputs_of(*maps), None), hint_loss(*maps))
    else:
        assert getattr(term.regressor, "kernel_size", None) == (1, 1)
        assert not torch.allclose(term(*outputs_of(*maps), None), hint_loss(*maps))


@pytest.mark.parametrize("use", ["auto", "always"])
def test_regressor_for_different_shapes(use: str) -> None:
    term = build_term(features(2, 3, 4, 4), features(2, 5, 3, 3), use_regressor=use)
    assert isinstance(term.regressor, nn.Conv2d)
    assert term.regressor.kernel_size == (2, 2)


def test_regressor_never_refuses_different_shapes(refused: Any) -> None:
    with refused("g (3, 4, 4)", "h (5, 4, 4)", "allow a regressor"):
        build_term(features(2, 3, 4, 4), features(2, 5, 4, 4), use_regressor="never")


def test_roles_of_term() -> None:
    assert (Hint("g", "h").roles, Hint("g", "h").teacher_roles) == (("g",), ("h",))


def test_second_build_has_no_effect() -> None:
    guided, hint = features(2, 3, 4, 4), features(2, 5, 4, 4)
    term = build_term(guided, hint)
    before = term.regressor
    term.build(*outputs_of(guided, hint))
    assert term.regressor is before


def test_unbuilt_term_is_an_error() -> None:
    guided, hint = features(2, 3, 4, 4), features(2, 3, 4, 4)
    term = Hint("g", "h")
    term.build(outputs_of(guided, hint)[0], None)
    assert term.regressor is None
    with pytest.raises(TutelageError, match=r"call build\(student, teacher\)"):
        term(*outputs_of(guided, hint), None)


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
def test_gradient_reaches_student_and_regressor_but_not_teacher(reduction: str) -> None:
    guided, hint = features(2, 3, 4, 4).requires_grad_(), features(2, 5, 4, 4).requires_grad_()
    term = build_term(guided, hint, reduction=reduction)
    term(*outputs_of(guided, hint), None).sum().backward()
    tensors = [guided, *term.parameters()]
    assert len(tensors) == 3
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in tensors)
    assert hint.grad is None


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
def test_value_and_gradient_are_zero_at_equality_without_regressor(reduction: str) -> None:
    guided = features(2, 3, 4, 4).requires_grad_()
    value = build_term(guided, guided, reduction=reduction)(*outputs_of(guided, guided.detach()), None)
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert guided.grad is not None
    assert guided.grad.abs().max() == 0


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
@pytest.mark.parametrize("hint", [(2, 5, 2, 2), (2, 5, 4, 4)], ids=["smaller", "larger"])
def test_gradcheck(hint: tuple[int, ...], reduction: str) -> None:
    guided, target = features(2, 2, 3, 3).requires_grad_(), features(*hint, seed=1)
    term = build_term(guided, target, reduction=reduction)
    assert torch.autograd.gradcheck(lambda v: term(*outputs_of(v, target), None), guided)


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_regressor_accepts_any_precision(dtype: torch.dtype, reduction: str) -> None:
    guided, hint = features(2, 3, 4, 4).to(dtype), (300 * features(2, 5, 4, 4)).to(dtype)  # 300^2 overflows in float16
    term = build_term(guided, hint, reduction=reduction)
    value = term(*outputs_of(guided, hint), None)
    full = torch.promote_types(dtype, torch.float32)
    assert {parameter.dtype for parameter in term.parameters()} == {full}
    assert value.dtype == full
    assert torch.equal(value, term(*outputs_of(guided.to(full), hint.to(full)), None))
