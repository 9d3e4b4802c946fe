"""The terms of DLF: a student tracker's maps and responses under a teacher's."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.methods.siamese_dlf.losses import pair_distance, point_distance, response_divergence
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.plain import Values
from tutelage.terms.term import BUILD_FIRST, Term


class OfMaps(Term):
    """A term that compares one role of the student with one of the teacher."""

    reads_labels = False

    def __init__(self, role: str, teacher_role: str) -> None:
        super().__init__()
        self.roles, self.teacher_role = (role,), teacher_role

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's layer."""
        return (self.teacher_role,)


class PointWise(OfMaps):
    """``point_distance`` of a layer, (B,), after a trained 1 x 1 convolution to the teacher's channels.

    Args:
        role: the student's layer.
        teacher_role: the teacher's.
    """

    def __init__(self, role: str, teacher_role: str) -> None:
        super().__init__(role, teacher_role)
        self.adapter: nn.Module | None = None

    def build(self, student: Values, teacher: Values | None) -> None:
        """Create the adapter from the numbers of channels."""
        if self.adapter is not None or teacher is None:
            return
        student, teacher = self.outputs(student, teacher)
        maps = student[self.roles[0]]
        adapter = nn.Conv2d(maps.shape[1], teacher[self.teacher_role].shape[1], 1)
        self.adapter = adapter.to(at_least_float32(maps))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        adapter = self.required(self.adapter, "an adapter", BUILD_FIRST)
        maps: Tensor = adapter(at_least_float32(student[self.roles[0]]))
        return point_distance(maps, self.required(teacher)[self.teacher_role])


class PairWise(OfMaps):
    """``pair_distance`` of a layer, (B,).

    Args:
        role: the student's layer.
        teacher_role: the teacher's.
    """

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        return pair_distance(student[self.roles[0]], self.required(teacher)[self.teacher_role])


class Responses(Term):
    """``response_divergence`` of the responses, (B,)."""

    reads_labels = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        return response_divergence(student["logits"], self.required(teacher)["logits"])
