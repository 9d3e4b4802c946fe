"""A term of logits, applied to another output of the student."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.term import Term


class OnRole(Term):
    """A term of logits, applied to another role of the student that holds logits: a branch, an auxiliary classifier.

    Args:
        role: the student's role, (B, C).
        term: the term. It reads the same outputs of the teacher as without ``OnRole``.
    """

    def __init__(self, role: str, term: Term) -> None:
        super().__init__()
        self.roles, self.term = (role,), term
        self.reads_labels = term.reads_labels

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """Those of the term."""
        return self.term.teacher_roles

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build the term on that role."""
        self.term.build(Outputs(student[self.roles[0]]), teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The term's value."""
        value: Tensor = self.term(Outputs(student[self.roles[0]]), teacher, batch)
        return value
