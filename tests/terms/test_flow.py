"""FSP: the flow matrix and its loss against known values and plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.terms.flows import every_reduction, features, loss_by_hand, matrices_by_hand
from tutelage.losses import flow_loss, flow_matrix
from tutelage.terms.flow import Reduction

# --- the matrix


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (2, 7)])
def test_matrix_of_constant_maps_is_their_product(size: tuple[int, int]) -> None:
    result = flow_matrix(torch.full((2, 3, *size), 2.0), torch.full((2, 5, *size), -1.5))
    torch.testing.assert_close(result, torch.full((2, 3, 5), -3.0))


def test_larger_map_is_max_pooled() -> None:
    """Average pooling would give 3."""
    large, small = torch.tensor([[0.0, 1], [2, 3]]).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), 2.0)
    assert flow_matrix(large, small).tolist() == [[[6]]]
    assert flow_matrix(small, large).tolist() == [[[6]]]
    assert flow_matrix(-large - 1, small).tolist() == [[[-2]]]  # no padding, no ReLU: the largest is -1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((3, 4, 2, 3), (3, 5, 2, 3)),
        ((2, 4, 4, 6), (2, 3, 2, 3)),
        ((2, 3, 2, 3), (2, 4, 4, 6)),
        ((2, 3, 4, 2), (2, 2, 2, 6)),
        ((1, 1, 3, 3), (1, 6, 1, 1)),
    ],
    ids=["one size", "first larger", "second larger", "each axis by itself", "a single place"],
)
def test_the_matrix_equals_plain_loops(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    first_map, second_map = features(*first), features(*second, seed=1)
    result = flow_matrix(first_map, second_map)
    assert result.shape == (first[0], first[1], second[1])
    torch.testing.assert_close(result, torch.tensor(matrices_by_hand(first_map, second_map), dtype=torch.float64))


def test_sizes_that_do_not_divide_are_pooled() -> None:
    first_map, second_map = features(2, 3, 5, 7), features(2, 4, 3, 2, seed=1)
    torch.testing.assert_close(
        flow_matrix(first_map, second_map), flow_matrix(F.adaptive_max_pool2d(first_map, (3, 2)), second_map)
    )


def test_flow_matrix_is_bilinear() -> None:
    first_map, second_map, third_map = features(2, 3, 4, 4), features(2, 5, 4, 4, seed=1), features(2, 5, 4, 4, seed=2)
    torch.testing.assert_close(flow_matrix(2 * first_map, second_map), 2 * flow_matrix(first_map, second_map))
    torch.testing.assert_close(flow_matrix(first_map, -3 * second_map), -3 * flow_matrix(first_map, second_map))
    torch.testing.assert_close(
        flow_matrix(first_map, second_map + third_map),
        flow_matrix(first_map, second_map) + flow_matrix(first_map, third_map),
    )
    torch.testing.assert_close(flow_matrix(second_map, first_map), flow_matrix(first_map, second_map).transpose(1, 2))


def test_invariant_to_permuted_pixels_but_not_channels() -> None:
    first_map, second_map, order = features(2, 3, 2, 3), features(2, 5, 2, 3, seed=1), torch.tensor([4, 2, 0, 5, 1, 3])
    permuted_maps = [f.flatten(2)[:, :, order].view_as(f) for f in (first_map, second_map)]
    result = flow_matrix(first_map, second_map)
    torch.testing.assert_close(flow_matrix(*permuted_maps), result)
    assert not torch.allclose(flow_matrix(permuted_maps[0], second_map), result, rtol=1e-2)
    permuted = flow_matrix(first_map[:, [2, 0, 1]], second_map)
    torch.testing.assert_close(permuted, result[:, [2, 0, 1]])
    assert (flow_loss(permuted, result) > 1e-2).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_products_beyond_range_of_float16(half: torch.dtype) -> None:
    """300^2 overflows in float16."""
    result = flow_matrix(torch.full((1, 2, 2, 2), 300.0).to(half), torch.full((1, 3, 4, 4), 300.0).to(half))
    assert result.dtype == torch.float32
    assert result.tolist() == [[[9e4] * 3] * 2]
    expectations: dict[Reduction, float] = {"paper": 6 * 9e4, "mean": 9e4, "relative": 1}
    for reduction, expected in expectations.items():
        pair = torch.zeros(1, 2, 3).to(half), torch.full((1, 2, 3), 300.0).to(half)
        value = flow_loss(pair[0], pair[1], reduction)
        assert value.dtype == torch.float32
        assert value.tolist() == [expected]


# --- the loss


def test_loss_is_squared_frobenius_norm() -> None:
    """The sum of unsquared column norms would be 5 + 2."""
    student, teacher = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 0], [4, 2]]])
    assert flow_loss(student, teacher).tolist() == [29]
    assert flow_loss(student, teacher, "mean").tolist() == [29 / 4]
    assert flow_loss(student, teacher, "relative").tolist() == [1]
    assert flow_loss(student, -teacher, "paper").tolist() == [29]


@every_reduction
def test_the_loss_equals_plain_loops(reduction: Reduction) -> None:
    student, teacher = features(3, 4, 5), features(3, 4, 5, seed=1)
    expected = loss_by_hand(student.tolist(), teacher.tolist(), reduction)
    assert flow_loss(student, teacher, reduction).tolist() == pytest.approx(expected, rel=1e-12)


def test_relative_loss_is_one_on_average_for_zero_student() -> None:
    teacher = features(4, 3, 5)
    value = flow_loss(torch.zeros_like(teacher), teacher, "relative")
    assert value.mean().item() == pytest.approx(1)
    assert value.std() > 0.1  # the scale is that of the batch, not of each sample


@every_reduction
def test_a_teacher_of_zeros_is_finite_in_value_and_gradient(reduction: Reduction) -> None:
    student = torch.ones(2, 3, 4, requires_grad=True)
    value = flow_loss(student, torch.zeros(2, 3, 4), reduction)
    value.sum().backward()
    assert value.tolist() == [1 if reduction == "mean" else 12] * 2
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (4, 3)])
def test_matrices_of_different_channels_are_an_error(shape: tuple[int, int], refused: Any) -> None:
    """(4, 3) has as many entries as (3, 4), but with another meaning."""
    with refused(shape, (3, 4), "equal numbers of channels"):
        flow_loss(torch.zeros(2, *shape), torch.zeros(2, 3, 4))


@every_reduction
def test_gradcheck(reduction: Reduction) -> None:
    teacher = flow_matrix(features(2, 2, 3, 3, seed=2), features(2, 3, 3, 3, seed=3))
    inputs = [features(2, 2, 4, 4).requires_grad_(), features(2, 3, 2, 2, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: flow_loss(flow_matrix(a, b), teacher, reduction), inputs)


@every_reduction
def test_no_gradient_reaches_teacher_matrix(reduction: Reduction) -> None:
    student, teacher = features(2, 3, 4).requires_grad_(), features(2, 3, 4, seed=1).requires_grad_()
    flow_loss(student, teacher, reduction).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None
