"""FSP: known values, plain loops, pooling, and adapters between different numbers of channels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.losses import flow_loss, flow_matrix
from tutelage.models.outputs import Outputs
from tutelage.terms import Flow
from tutelage.terms.flow import Reduction

REDUCTIONS: list[Reduction] = ["relative", "paper", "mean"]
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
LAYERS = (("stem", "conv1"), ("one", "layer1"), ("two", "layer2"))
STUDENT = {"stem": (2, 4, 4), "one": (3, 4, 4), "two": (5, 2, 2)}
TEACHER = {"conv1": (2, 6, 6), "layer1": (3, 3, 3), "layer2": (5, 3, 3)}  # the same channels, other sizes
WIDER = {"conv1": (4, 4, 4), "layer1": (3, 4, 4), "layer2": (6, 2, 2)}
NARROWER = {"conv1": (1, 4, 4), "layer1": (3, 4, 4), "layer2": (2, 2, 2)}


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, batch: int = 2) -> Outputs:
    return Outputs(None, {role: features(batch, *s, seed=10 * seed + i) for i, (role, s) in enumerate(shapes.items())})


def times(factor: float, maps: Outputs) -> Outputs:
    return Outputs(None, {role: factor * value for role, value in maps.features.items()})


def build_term(student: Outputs, teacher: Outputs, *options: Any) -> Flow:
    torch.manual_seed(0)
    term = Flow(LAYERS, *options)
    term.build(student, teacher)
    return term


def matrix_by_hand(first: list[Any], second: list[Any]) -> list[list[float]]:
    """The matrix of one sample; the larger map is max-pooled, for sizes that are multiples."""
    height, width = (min(len(a), len(b)) for a, b in ((first[0], second[0]), (first[0][0], second[0][0])))

    def pooled(channel: list[list[float]], y: int, x: int) -> float:
        down, across = len(channel) // height, len(channel[0]) // width
        return max(channel[y * down + i][x * across + j] for i in range(down) for j in range(across))

    pixels = list(product(range(height), range(width)))
    return [[sum(pooled(a, *p) * pooled(b, *p) for p in pixels) / len(pixels) for b in second] for a in first]


def loss_by_hand(student: list[Any], teacher: list[Any], reduction: Reduction) -> list[float]:
    """The loss of lists of matrices, one per sample."""
    squares = [
        [(t - s) ** 2 for rows in zip(student_role, teacher_role, strict=True) for s, t in zip(*rows, strict=True)]
        for student_role, teacher_role in zip(student, teacher, strict=True)
    ]
    energy = sum(t * t for matrix in teacher for row in matrix for t in row) / len(teacher)
    divisor = {"paper": 1, "mean": len(squares[0]), "relative": energy}[reduction]
    return [sum(squares_of_sample) / divisor for squares_of_sample in squares]


def matrices_by_hand(first: Tensor, second: Tensor) -> list[list[list[float]]]:
    return [matrix_by_hand(*pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]


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


# --- the term


def test_roles_of_term() -> None:
    term = Flow(LAYERS)
    assert (term.roles, term.teacher_roles) == (("stem", "one", "two"), ("conv1", "layer1", "layer2"))
    assert (term.reduction, term.adapter) == ("relative", "auto")


@every_reduction
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_term_compares_flows_between_consecutive_layers(batch: int, reduction: Reduction) -> None:
    """The term is their sum, or their mean with the relative reduction."""
    student, teacher = outputs(STUDENT, 0, batch), outputs(TEACHER, 1, batch)
    expected = torch.zeros(batch).double()
    for (student_role, teacher_role), (next_student_role, next_teacher_role) in (
        (LAYERS[0], LAYERS[1]),
        (LAYERS[1], LAYERS[2]),
    ):
        flows = (
            matrices_by_hand(student[student_role], student[next_student_role]),
            matrices_by_hand(teacher[teacher_role], teacher[next_teacher_role]),
        )
        expected += torch.tensor(loss_by_hand(*flows, reduction), dtype=torch.float64)
    if reduction == "relative":
        expected /= 2
    term = build_term(student, teacher, reduction)
    value = term(student, teacher, None)
    assert value.shape == (batch,)
    torch.testing.assert_close(value, expected)
    assert list(term.parameters()) == []


@every_reduction
def test_zero_at_equality(reduction: Reduction) -> None:
    student = outputs(STUDENT)
    for value in student.features.values():
        value.requires_grad_()
    teacher = Outputs(None, {teacher_role: student[student_role].detach() for student_role, teacher_role in LAYERS})
    value = build_term(student, teacher, reduction)(student, teacher, None)
    value.sum().backward()
    assert value.tolist() == [0, 0]
    for inputs in student.features.values():
        assert inputs.grad is not None
        assert inputs.grad.abs().max() == 0


def test_only_relative_loss_is_scale_invariant() -> None:
    student, teacher = outputs(STUDENT), outputs(TEACHER, 1)
    for reduction, factor in (("relative", 1), ("paper", 1e4), ("mean", 1e4)):
        term = build_term(student, teacher, reduction)
        scaled_loss = term(times(10, student), times(10, teacher), None)
        torch.testing.assert_close(scaled_loss, factor * term(student, teacher, None))


@pytest.mark.parametrize("teacher_role", [TEACHER, WIDER], ids=["as many channels", "through adapters"])
def test_relative_loss_is_one_for_zero_student(teacher_role: Mapping[str, tuple[int, ...]]) -> None:
    student, teacher = times(0, outputs(STUDENT)), outputs(teacher_role, 1)
    assert build_term(student, teacher)(student, teacher, None).mean().item() == pytest.approx(1)


@every_reduction
@pytest.mark.parametrize("zero_network", ["student", "teacher", "both"])
def test_maps_of_zeros_are_finite_in_value_and_gradient(zero_network: str, reduction: Reduction) -> None:
    student = times(0 if zero_network != "teacher" else 1, outputs(STUDENT))
    teacher = times(0 if zero_network != "student" else 1, outputs(TEACHER, 1))
    for value in student.features.values():
        value.requires_grad_()
    value = build_term(student, teacher, reduction)(student, teacher, None)
    value.sum().backward()
    assert value.isfinite().all()
    assert all(v.grad is not None and v.grad.isfinite().all() for v in student.features.values())


@pytest.mark.parametrize("teacher_role", [WIDER, NARROWER], ids=["wider teacher", "narrower teacher"])
def test_adapter_is_built_only_for_different_channels(teacher_role: Mapping[str, tuple[int, ...]]) -> None:
    student, teacher = outputs(STUDENT), outputs(teacher_role, 1)
    term = build_term(student, teacher)
    assert term.adapters is not None
    stem, first_adapter, second_adapter = term.adapters
    assert type(first_adapter) is nn.Identity
    for adapter, channels in ((stem, (2, teacher_role["conv1"][0])), (second_adapter, (5, teacher_role["layer2"][0]))):
        assert isinstance(adapter, nn.Conv2d)
        assert (adapter.in_channels, adapter.out_channels) == channels
        assert (adapter.kernel_size, adapter.bias) == ((1, 1), None)
    assert len(list(term.parameters())) == 2
    assert term(student, teacher, None).shape == (2,)


def test_student_maps_pass_through_adapters() -> None:
    student, teacher = outputs(STUDENT), outputs(WIDER, 1)
    term = build_term(student, teacher, "paper")
    features_before = {role: value.clone() for role, value in student.features.items()}
    for role, parameter in zip(("stem", "two"), term.parameters(), strict=True):
        features_before[role] = torch.einsum("oi,bihw->bohw", parameter[:, :, 0, 0], student[role])
    adapted_outputs = Outputs(None, features_before)
    torch.testing.assert_close(
        term(student, teacher, None), build_term(adapted_outputs, teacher, "paper")(adapted_outputs, teacher, None)
    )


def test_gradient_reaches_student_and_adapters_but_not_teacher() -> None:
    student, teacher = outputs(STUDENT), outputs(WIDER, 1)
    for value in (*student.features.values(), *teacher.features.values()):
        value.requires_grad_()
    term = build_term(student, teacher)
    term(student, teacher, None).sum().backward()
    tensors = [*student.features.values(), *term.parameters()]
    assert len(tensors) == 5
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in tensors)
    assert [value.grad for value in teacher.features.values()] == [None, None, None]


def test_adapter_never_refuses_different_channels(refused: Any) -> None:
    with refused("stem has 2 channels", "conv1 4", "adapter=auto"):
        build_term(outputs(STUDENT), outputs(WIDER, 1), "relative", "never")
    with refused("stem has 2 channels", "conv1 1"):
        build_term(outputs(STUDENT), outputs(NARROWER, 1), "relative", "never")
    with refused("two has 5 channels", "layer2 6", "differs in depth alone"):
        build_term(outputs(STUDENT), outputs({**WIDER, "conv1": (2, 4, 4)}, 1), "paper", "never")


def test_adapter_never_equals_auto_for_equal_channels() -> None:
    student, teacher = outputs(STUDENT), outputs(TEACHER, 1)
    values = [build_term(student, teacher, "relative", use)(student, teacher, None) for use in ("never", "auto")]
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("layers", "layer_count"), [((), "(none)"), ((("one", "layer1"),), "(one and layer1)")], ids=str
)
def test_at_least_two_layers_are_required(layers: tuple[tuple[str, str], ...], layer_count: str, refused: Any) -> None:
    with refused("between two layers", layer_count, "roles={"):
        Flow(layers)


@every_reduction
def test_built_term_reads_flow_of_teacher_instead_of_layers(reduction: Reduction) -> None:
    student, teacher = outputs(STUDENT), outputs(WIDER, 1)
    term = Flow(LAYERS, reduction)
    assert term.teacher_roles == ("conv1", "layer1", "layer2")
    torch.manual_seed(0)
    term.build(student, teacher)
    assert term.teacher_roles == ("flow_matrix(conv1, layer1)", "flow_matrix(layer1, layer2)")
    derived_outputs = teacher.select(term.teacher_roles)
    assert [tuple(value.shape) for value in derived_outputs.features.values()] == [(2, 4, 3), (2, 3, 6)]
    for rows in (term, copy.deepcopy(term), pickle.loads(pickle.dumps(term))):
        assert torch.equal(rows(student, derived_outputs, None), term(student, teacher, None))


def test_second_build_has_no_effect() -> None:
    student, teacher = outputs(STUDENT), outputs(WIDER, 1)
    term = build_term(student, teacher)
    before = term.adapters
    term.build(student, teacher)
    assert term.adapters is before


@pytest.mark.parametrize("missing_part", ["teacher", "build"])
def test_unbuilt_term_or_missing_teacher_is_an_error(missing_part: str) -> None:
    student, teacher = outputs(STUDENT), outputs(TEACHER, 1)
    term = Flow(LAYERS)
    term.build(student, None if missing_part == "build" else teacher)
    assert (term.adapters is None) == (missing_part == "build")
    remedy = {"teacher": "a teacher's outputs", "build": r"adapters .* call build\(student, teacher\)"}[missing_part]
    with pytest.raises(TutelageError, match=remedy):
        term(student, None if missing_part == "teacher" else teacher, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_adapters_accept_any_precision(dtype: torch.dtype) -> None:
    def to(maps: Outputs, kind: torch.dtype) -> Outputs:
        return Outputs(None, {role: value.to(kind) for role, value in maps.features.items()})

    student, teacher = to(outputs(STUDENT), dtype), to(outputs(WIDER, 1), dtype)
    term = build_term(student, teacher)
    value = term(student, teacher, None)
    full = torch.promote_types(dtype, torch.float32)
    assert {parameter.dtype for parameter in term.parameters()} == {full}
    assert value.dtype == full
    assert torch.equal(value, term(to(student, full), to(teacher, full), None))
