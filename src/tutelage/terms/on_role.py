"""A term on another output of the student than its logits."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.term import Term


class OnRole(Term):
    """A term about logits, asked of another role that gives logits: a branch, an auxiliary classifier.

    Args:
        role: the student's role, (B, C).
        term: what is asked of it. The teacher's side is as the term has it.
    """

    def __init__(self, role: str, term: Term) -> None:
        super().__init__()
        self.roles, self.term = (role,), term
        self.reads_labels = term.reads_labels

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The term's own."""
        return self.term.teacher_roles

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build the term on that role."""
        self.term.build(Outputs(student[self.roles[0]]), teacher)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The term's value."""
        value: Tensor = self.term(Outputs(student[self.roles[0]]), teacher, batch)
        return value
