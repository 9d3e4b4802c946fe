"""Properties of every term, the arithmetic of weights, and terms on views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms import (
    AngleRelations,
    AttentionTransfer,
    DistanceRelations,
    Flow,
    Hint,
    Mimicry,
    OnRole,
    SimilarityPreserving,
    SoftTargets,
    Term,
    View,
    Weighted,
)

FEATURES = {"stage1": (3, 4, 4), "stage2": (5, 2, 2), "embedding": (7,), "branch": (6,)}
PAIRS = (("stage1", "stage1"), ("stage2", "stage2"))


@dataclass(frozen=True)
class Case:
    make: Callable[[], Term]
    symmetric: bool
    by_sample: bool = True
    """No sample counts in another's value."""
    one_value_per_batch: bool = False
    """One value for the batch."""


CASES = {
    "soft targets": Case(lambda: SoftTargets(4), False),
    "soft targets at T=1": Case(lambda: SoftTargets(1), False),
    "mimicry": Case(lambda: Mimicry(2), False),
    "attention": Case(lambda: AttentionTransfer(PAIRS), True),
    "attention, paper": Case(lambda: AttentionTransfer(PAIRS, 1, "paper"), True),
    "hint": Case(lambda: Hint("stage1", "stage1"), True),
    "hint, mean": Case(lambda: Hint("stage2", "stage2", "mean"), True),
    "hint, relative": Case(lambda: Hint("stage1", "stage1", "relative"), False, by_sample=False),
    "hint of embeddings": Case(lambda: Hint("embedding", "embedding"), True),
    "flow": Case(lambda: Flow(PAIRS), False, by_sample=False),
    "flow, paper": Case(lambda: Flow(PAIRS, "paper"), True),
    "flow, mean": Case(lambda: Flow(PAIRS, "mean"), True),
    "similarity": Case(lambda: SimilarityPreserving("stage2", "stage2"), True, one_value_per_batch=True),
    "distances": Case(DistanceRelations, True, one_value_per_batch=True),
    "angles": Case(AngleRelations, True, one_value_per_batch=True),
    "soft targets of a branch": Case(lambda: OnRole("branch", SoftTargets(4)), False),
}


def cases_where(condition: Callable[[Case], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=name) for name, case in CASES.items() if condition(case)]
    )


every_term = cases_where(lambda case: True)


def outputs(seed: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (2 * torch.randn(3, *shape, generator=generator)).to(dtype).requires_grad_(requires_grad)

    logits = draw(6)
    features = {role: draw(*shape) for role, shape in FEATURES.items() if role != "branch"}
    return Outputs(logits, features | {"branch": logits.detach().clone().requires_grad_(requires_grad)})


def tensors(role_outputs: Outputs, roles: tuple[str, ...]) -> list[Tensor]:
    return [role_outputs[role] for role in roles]


def build(case: Case, student: Outputs, teacher: Outputs) -> Term:
    term = case.make()
    term.build(student, teacher)
    return term


@every_term
def test_returns_value_per_sample_or_scalar(case: Case) -> None:
    student, teacher = outputs(0), outputs(1)
    value = build(case, student, teacher)(student, teacher, None)
    assert (value.shape, value.dtype) == (() if case.one_value_per_batch else (3,), torch.float32)
    assert (value > 0).all()


@cases_where(lambda case: not case.one_value_per_batch)
def test_values_per_sample_are_independent_unless_scaled_by_batch(case: Case) -> None:
    student, teacher = outputs(0), outputs(1)
    term = build(case, student, teacher)
    single_outputs = [
        Outputs(role_outputs["logits"][1:2], {role: value[1:2] for role, value in role_outputs.features.items()})
        for role_outputs in (student, teacher)
    ]
    in_batch = term(student, teacher, None)[1:2]
    assert torch.allclose(term(*single_outputs, None), in_batch, rtol=1e-5) == case.by_sample


@every_term
def test_value_and_gradient_are_exactly_zero_at_equality(case: Case) -> None:
    student = outputs(0, requires_grad=True)
    term = build(case, student, student)
    value = term(student, student.detach(), None)
    value.sum().backward()
    assert value.abs().max() == 0
    for tensor in tensors(student, term.roles):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() <= 1e-6  # T (p - q) with rounded p and q


@every_term
def test_gradient_reaches_the_student_and_never_the_teacher(case: Case) -> None:
    student, teacher = outputs(0, requires_grad=True), outputs(1, requires_grad=True)
    term = build(case, student, teacher)
    term(student, teacher, None).sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in tensors(student, term.roles))
    assert all(t.grad is None for t in (teacher["logits"], *teacher.features.values()))


@every_term
def test_asymmetric_unless_declared_symmetric(case: Case) -> None:
    student, teacher = outputs(0), outputs(1)
    term = build(case, student, teacher)
    forth, back = term(student, teacher, None), term(teacher, student, None)
    assert torch.allclose(forth, back, rtol=1e-5) == case.symmetric


@every_term
def test_gradcheck(case: Case) -> None:
    student, teacher = outputs(0, torch.float64, requires_grad=True), outputs(1, torch.float64)
    term = build(case, student, teacher)

    def value(*values: Tensor) -> Tensor:
        features = dict(zip(term.roles, values, strict=True))
        return term(Outputs(features.pop("logits", None), features), teacher, None)

    assert torch.autograd.gradcheck(value, tensors(student, term.roles))


@every_term
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(case: Case, half: torch.dtype) -> None:
    student, teacher = outputs(0, half), outputs(1, half)
    rounded_outputs = [
        Outputs(role_outputs["logits"].float(), {role: v.float() for role, v in role_outputs.features.items()})
        for role_outputs in (student, teacher)
    ]
    term = build(case, student, teacher)
    value = term(student, teacher, None)
    assert value.dtype == torch.float32
    assert torch.equal(value, term(*rounded_outputs, None))


@every_term
def test_autocast_does_not_change_value(case: Case) -> None:
    student, teacher = outputs(0), outputs(1)
    term = build(case, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        value = term(student, teacher, None)
    assert value.dtype == torch.float32
    assert torch.equal(value, term(student, teacher, None))


@every_term
def test_missing_teacher_is_an_error(case: Case) -> None:
    term = build(case, outputs(0), outputs(1))
    inner = term.term if isinstance(term, OnRole) else term
    with pytest.raises(TutelageError, match=f"{type(inner).__name__} needs"):
        term(outputs(0), None, None)


def test_default_term_reads_logits_and_needs_forward() -> None:
    class Unfinished(Term):
        pass

    assert (Unfinished().roles, Unfinished().teacher_roles) == (("logits",), ("logits",))
    with pytest.raises(NotImplementedError, match="Unfinished must define forward"):
        Unfinished()(outputs(0), outputs(1), None)


# --- weights

TERM = SoftTargets()


def ramp(progress: float) -> float:
    return 10 * progress


@pytest.mark.parametrize(
    ("weighted_term", "early", "late"),
    [
        (Weighted(TERM), 1, 1),
        (0.5 * TERM, 0.5, 0.5),
        (TERM * 0.5, 0.5, 0.5),
        (3 * TERM, 3, 3),
        (2 * (0.5 * TERM), 1, 1),
        ((0.5 * TERM) * 3, 1.5, 1.5),
        (ramp * TERM, 1, 9),
        (TERM * ramp, 1, 9),
        (0.5 * (ramp * TERM), 0.5, 4.5),
        (ramp * (0.5 * TERM), 0.5, 4.5),
        (ramp * (ramp * TERM), 1, 81),
        (2 * (ramp * (0.5 * TERM)) * 3, 3, 27),
    ],
)
def test_weights_multiply(weighted_term: Weighted, early: float, late: float) -> None:
    assert weighted_term.term is TERM
    assert (weighted_term.at(0.1), weighted_term.at(0.9)) == (pytest.approx(early), pytest.approx(late))
    assert isinstance(weighted_term.at(0.1), float)


def test_multiplication_does_not_change_the_operand() -> None:
    half = 0.5 * TERM
    _ = 4 * half
    assert half.at(0) == 0.5


# --- views


class Darker(View):
    pass


VIEW = Darker()


def test_term_on_view_has_weight_one() -> None:
    weighted_term = TERM.on(VIEW)
    assert isinstance(weighted_term, Weighted)
    assert weighted_term.term is TERM
    assert weighted_term.view is VIEW
    assert weighted_term.at(0.3) == 1


@pytest.mark.parametrize(
    ("weighted_term", "late"),
    [
        (0.5 * TERM.on(VIEW), 0.5),
        (TERM.on(VIEW) * 3, 3),
        (2 * (0.5 * TERM.on(VIEW)), 1),
        (ramp * TERM.on(VIEW), 9),
        (TERM.on(VIEW) * ramp, 9),
        (2 * (ramp * TERM.on(VIEW)), 18),
        (ramp * (2 * TERM.on(VIEW)), 18),
        (ramp * (ramp * TERM.on(VIEW)), 81),
        (Weighted(TERM, 4, VIEW), 4),
    ],
)
def test_multiplication_preserves_the_view(weighted_term: Weighted, late: float) -> None:
    assert weighted_term.view is VIEW
    assert weighted_term.term is TERM
    assert weighted_term.at(0.9) == pytest.approx(late)


@pytest.mark.parametrize("weighted_term", [Weighted(TERM), 0.5 * TERM, ramp * TERM, 2 * (ramp * TERM)])
def test_term_has_no_view_by_default(weighted_term: Weighted) -> None:
    assert weighted_term.view is None


def test_on_view_does_not_change_the_term() -> None:
    _ = TERM.on(VIEW)
    assert (1 * TERM).view is None


def test_default_view_reads_nothing_and_updates_statistics(
    batch_of: Callable[[Tensor], Batch],
) -> None:
    assert (VIEW.roles, VIEW.teacher_roles, VIEW.updates_statistics) == ((), (), True)
    with pytest.raises(NotImplementedError, match="Darker must define __call__"):
        VIEW(batch_of(torch.zeros(2)), outputs(0), None)


@pytest.mark.parametrize(
    "weighted",
    [TERM.for_all_samples(), (0.5 * TERM).for_all_samples(), ramp * (2 * TERM.on(VIEW).for_all_samples())],
)
def test_multiplication_preserves_for_all_samples(weighted: Weighted) -> None:
    assert weighted.all_samples
    assert not TERM.on(VIEW).all_samples
    assert not (2 * TERM).all_samples


def test_for_all_samples_preserves_the_rest() -> None:
    weighted = (3 * TERM.between(VIEW)).for_all_samples()
    assert (weighted.term, weighted.view, weighted.between, weighted.at(0.5)) == (TERM, VIEW, True, 3)
