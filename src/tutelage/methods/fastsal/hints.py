"""The hints of FastSal's first stage: the student's levels predict the activations of the teacher's decoder."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.plain import Values
from tutelage.terms.precision import full_precision
from tutelage.terms.term import BUILD_FIRST, Term

LEVELS = tuple(f"level{number}" for number in range(1, 5))
DECODER = tuple(f"decoder{number}" for number in range(1, 5))


@full_precision
def level_distance(adapted: Tensor, hint: Tensor) -> Tensor:
    """The mean over channels and pixels of (adapted - hint)^2 per image.

    Args:
        adapted: a level of the student after its adapter, (B, C, H, W).
        hint: the teacher's activation, of the same shape; no gradient reaches it.

    Returns:
        (B,), in squared units of the activations.

    Raises:
        TutelageError: the shapes differ.
    """
    if adapted.shape != hint.shape:
        raise TutelageError(
            f"a level {tuple(adapted.shape)} and an activation {tuple(hint.shape)} cannot be compared; give both "
            "networks images of one size"
        )
    return (adapted - hint.detach()).square().mean((1, 2, 3))


class LevelHints(Term):
    """The sum over four levels k of ``level_distance(r_k(e_k), t_k)``, per image (B,).

    e_k are the student's levels and t_k the activations of the teacher's decoder, both from fine to coarse. The adapter
    r_k is a 1x1 convolution and a ReLU. Adapters are not saved with the student.
    """

    reads_labels = False
    roles = LEVELS

    def __init__(self) -> None:
        super().__init__()
        self.adapters: nn.ModuleList | None = None

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The blocks of the decoder."""
        return DECODER

    def build(self, student: Values, teacher: Values | None) -> None:
        """Create the adapters.

        Raises:
            TutelageError: a level and its hint have other heights or widths.
        """
        if self.adapters is not None or teacher is None:
            return
        student, teacher = self.outputs(student, teacher)
        adapters = []
        for level, block in zip(LEVELS, DECODER, strict=True):
            features, hint = student[level], teacher[block]
            if features.shape[2:] != hint.shape[2:]:
                raise TutelageError(
                    f"the student's {level} {tuple(features.shape[1:])} and the teacher's {block} "
                    f"{tuple(hint.shape[1:])} differ in height or width; set hint_share=0, or take networks whose maps "
                    "are halved alike, such as fastsal-a and salgan"
                )
            adapters.append(nn.Sequential(nn.Conv2d(features.shape[1], hint.shape[1], 1), nn.ReLU()))
        self.adapters = nn.ModuleList(adapters).to(at_least_float32(student[LEVELS[0]]))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), in squared units of the activations."""
        teacher, adapters = self.required(teacher), self.required(self.adapters, "adapters", BUILD_FIRST)
        distances = [
            level_distance(adapter(at_least_float32(student[level])), teacher[block])
            for adapter, level, block in zip(adapters, LEVELS, DECODER, strict=True)
        ]
        total: Tensor = sum(distances[1:], distances[0])
        return total
