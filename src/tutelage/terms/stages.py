"""The base class of terms that compare the maps of pairs of stages."""

from __future__ import annotations

from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.shapes import check_samples
from tutelage.terms.term import Term


class StagePairs(Term):
    """A term on pairs of stages, which need maps (B, C, H, W) of any sizes and numbers of channels.

    Args:
        pairs: (student role, teacher role) of each pair of stages, the deepest last.

    Raises:
        TutelageError: there is no pair.
    """

    reads_labels = False

    def __init__(self, pairs: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        if not pairs:
            raise TutelageError(
                f"{type(self).__name__} needs at least one pair of stages; name some with roles={{...}}"
            )
        self.pairs = pairs
        self.roles = tuple(student for student, _ in pairs)

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's roles of the pairs."""
        return tuple(teacher for _, teacher in self.pairs)

    def maps(self, student: Outputs, teacher: Outputs | None) -> list[tuple[Tensor, Tensor]]:
        """The maps of the pairs, float32 or float64, those of the teacher without gradient.

        Raises:
            TutelageError: features that are no maps, or of different samples.
        """
        teacher, maps = self.required(teacher), []
        for role, teacher_role in self.pairs:
            features, target = at_least_float32(student[role]), at_least_float32(teacher[teacher_role].detach())
            if features.ndim != 4 or target.ndim != 4:
                raise TutelageError(
                    f"{type(self).__name__} needs maps (B, C, H, W), got the student's {tuple(features.shape)} and the "
                    f"teacher's {tuple(target.shape)}; name other layers"
                )
            check_samples(features, target)
            maps.append((features, target))
        return maps
