"""The term of FSP: consecutive layers, and adapters between different numbers of channels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.terms.flows import every_reduction, features, loss_by_hand, matrices_by_hand
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms import Flow
from tutelage.terms.flow import Reduction

LAYERS = (("stem", "conv1"), ("one", "layer1"), ("two", "layer2"))
STUDENT = {"stem": (2, 4, 4), "one": (3, 4, 4), "two": (5, 2, 2)}
TEACHER = {"conv1": (2, 6, 6), "layer1": (3, 3, 3), "layer2": (5, 3, 3)}  # the same channels, other sizes
WIDER = {"conv1": (4, 4, 4), "layer1": (3, 4, 4), "layer2": (6, 2, 2)}
NARROWER = {"conv1": (1, 4, 4), "layer1": (3, 4, 4), "layer2": (2, 2, 2)}


def outputs(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, batch: int = 2) -> Outputs:
    return Outputs(None, {role: features(batch, *s, seed=10 * seed + i) for i, (role, s) in enumerate(shapes.items())})


def times(factor: float, maps: Outputs) -> Outputs:
    return Outputs(None, {role: factor * value for role, value in maps.features.items()})


def build_term(student: Outputs, teacher: Outputs, *options: Any) -> Flow:
    torch.manual_seed(0)
    term = Flow(LAYERS, *options)
    term.build(student, teacher)
    return term


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
