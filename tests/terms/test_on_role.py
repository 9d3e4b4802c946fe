"""A term applied to another output of the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import cross_entropy, soft_targets
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy, Hint, OnRole, SoftTargets, Term


def logits(seed: int) -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Watched(Term):
    """Records its arguments, has a parameter, and reads another role of the teacher."""

    teacher_roles = ("logits", "embedding")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.built: list[tuple[Outputs, Outputs | None]] = []
        self.given: list[tuple[Outputs, Outputs | None, Batch | None]] = []

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        self.built.append((student, teacher))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        self.given.append((student, teacher, batch))
        return self.scale * student["logits"].sum(1)


def test_roles_are_its_own_and_teacher_roles_those_of_term() -> None:
    assert (OnRole("branch", SoftTargets()).roles, OnRole("branch", SoftTargets()).teacher_roles) == (
        ("branch",),
        ("logits",),
    )
    assert OnRole("branch", CrossEntropy()).teacher_roles == ()
    assert OnRole("branch", Watched()).teacher_roles == ("logits", "embedding")


def test_branch_replaces_logits(batch_of: Callable[[Tensor], Batch]) -> None:
    student, teacher = Outputs(logits(0), {"branch": logits(1)}), Outputs(logits(2), {"branch": logits(3)})
    kd = OnRole("branch", SoftTargets(3))(student, teacher, None)
    assert torch.equal(kd, soft_targets(logits(1), logits(2), 3))
    labels = torch.tensor([1, -1, 3])
    ce = OnRole("branch", CrossEntropy())(student, None, batch_of(labels))
    assert torch.equal(ce, cross_entropy(logits(1), labels))


def test_student_logits_may_be_missing() -> None:
    value = OnRole("branch", SoftTargets())(Outputs(None, {"branch": logits(1)}), Outputs(logits(2)), None)
    assert torch.equal(value, soft_targets(logits(1), logits(2)))


def test_inner_term_gets_branch_teacher_and_batch(
    batch_of: Callable[[Tensor], Batch],
) -> None:
    inner = Watched()
    student, teacher, batch = Outputs(logits(0), {"branch": logits(1)}), Outputs(logits(2)), batch_of(torch.zeros(3))
    term = OnRole("branch", inner)
    term.build(student, teacher)
    term(student, teacher, batch)
    (at_build,), (at_call,) = inner.built, inner.given
    assert torch.equal(at_build[0]["logits"], logits(1))
    assert torch.equal(at_call[0]["logits"], logits(1))
    assert at_build[1] is at_call[1] is teacher
    assert at_call[2] is batch


def test_parameters_of_inner_term_are_registered() -> None:
    inner = Watched()
    assert list(OnRole("branch", inner).parameters()) == [inner.scale]


def test_gradient_reaches_branch_only() -> None:
    student_logits, branch, teacher_logits = (logits(seed).requires_grad_() for seed in range(3))
    OnRole("branch", SoftTargets())(
        Outputs(student_logits, {"branch": branch}), Outputs(teacher_logits), None
    ).sum().backward()
    assert branch.grad is not None
    assert branch.grad.abs().max() > 0
    assert (student_logits.grad, teacher_logits.grad) == (None, None)


def test_zero_if_branch_equals_teacher() -> None:
    branch = logits(1).requires_grad_()
    value = OnRole("branch", SoftTargets())(Outputs(logits(0), {"branch": branch}), Outputs(logits(1)), None)
    value.sum().backward()
    assert value.tolist() == [0, 0, 0]
    assert branch.grad is not None
    assert branch.grad.abs().max() < 1e-12  # T (p - q) with rounded p and q


def test_missing_role_is_an_error(refused: Any) -> None:
    with refused("no 'branch'", "logits"):
        OnRole("branch", SoftTargets())(Outputs(logits(0)), Outputs(logits(1)), None)


def test_term_of_other_roles_is_an_error(refused: Any) -> None:
    features = Outputs(None, {"branch": logits(0), "stage1": torch.zeros(3, 2, 2, 2)})
    with refused("no 'stage1'"):
        OnRole("branch", Hint("stage1", "stage1")).build(features, features)


def test_missing_teacher_is_an_error() -> None:
    with pytest.raises(TutelageError, match="SoftTargets needs a teacher"):
        OnRole("branch", SoftTargets())(Outputs(None, {"branch": logits(0)}), None, None)


def test_teacher_role_replaces_the_teachers_logits(refused: Any) -> None:
    term = OnRole("branch", SoftTargets(3), teacher_role="ensemble")
    assert (term.roles, term.teacher_roles) == (("branch",), ("ensemble",))
    student = Outputs(None, {"branch": logits(1).requires_grad_()})
    ensemble = logits(3).requires_grad_()
    value = term(student, Outputs(logits(2), {"ensemble": ensemble}), None)
    torch.testing.assert_close(value, soft_targets(student["branch"], ensemble, 3), rtol=0, atol=0)
    value.sum().backward()
    assert ensemble.grad is None
    with refused("SoftTargets needs a teacher's outputs"):
        term(student, None, None)


@pytest.mark.parametrize(("term", "reads"), [(CrossEntropy(), "no outputs"), (Watched(), "logits, embedding")])
def test_teacher_role_needs_a_term_of_the_teachers_logits_alone(term: Term, reads: str) -> None:
    with pytest.raises(ValueError, match=f"teacher_role='ensemble' .* reads {reads} of the teacher"):
        OnRole("branch", term, teacher_role="ensemble")
