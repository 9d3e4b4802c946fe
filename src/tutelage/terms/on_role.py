"""A term of logits, applied to other outputs of the student or the teacher."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.terms.term import Term


class OnRole(Term):
    """A term of logits, applied to another role of the student that holds logits: a branch, an auxiliary classifier.

    Args:
        role: the student's role, (B, C).
        term: the term.
        teacher_role: the teacher's role that takes the place of its logits, (B, C), for a term that reads no other
            output of the teacher; without it, the term reads the same outputs of the teacher as without ``OnRole``.
    """

    def __init__(self, role: str, term: Term, teacher_role: str | None = None) -> None:
        super().__init__()
        if teacher_role is not None and tuple(term.teacher_roles) != ("logits",):
            raise ValueError(
                f"teacher_role={teacher_role!r} replaces the teacher's logits, and {type(term).__name__} reads "
                f"{', '.join(term.teacher_roles) or 'no outputs'} of the teacher"
            )
        self.roles, self.term, self.teacher_role = (role,), term, teacher_role
        self.reads_labels, self.reads_index = term.reads_labels, term.reads_index
        self.uses_soft_labels = term.uses_soft_labels

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """Those of the term, or ``teacher_role``."""
        return self.term.teacher_roles if self.teacher_role is None else (self.teacher_role,)

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Build the term on these roles."""
        self.term.build(Outputs(student[self.roles[0]]), self._teacher(teacher))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The term's value."""
        value: Tensor = self.term(Outputs(student[self.roles[0]]), self._teacher(teacher), batch)
        return value

    def _teacher(self, teacher: Outputs | None) -> Outputs | None:
        if self.teacher_role is None or teacher is None:
            return teacher
        return Outputs(teacher[self.teacher_role])
