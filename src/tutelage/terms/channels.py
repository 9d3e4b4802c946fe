"""Channel-wise distillation (CWD): Shu, Liu, Gao, Yan, Shen 2021, arXiv 2011.13256."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.terms.pixels import resized
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_same_outputs
from tutelage.terms.soft_targets import kl_divergence
from tutelage.terms.term import BUILD_FIRST, Term


@full_precision
def channel_divergence(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """The channel-wise loss, T^2 / C sum_c KL(phi(y^T_c) || phi(y^S_c)), per sample.

    phi(y_c)_i = exp(y_ci / T) / sum_j exp(y_cj / T) is the softmax over the positions i of channel c. A number that is
    added to a channel of either side changes nothing, and the value is 0 if each two channels differ by a constant.

    Args:
        student, teacher: y^S and y^T, maps (B, C, H, W) of one shape. No gradient reaches the teacher's.
        temperature: T > 0.

    Returns:
        (B,) nats times T^2: the sum over positions, the mean over channels.

    Raises:
        TutelageError: the shapes differ, or are no maps.
    """
    if student.ndim != 4:
        raise TutelageError(f"channel-wise distillation needs maps (B, C, H, W), got shape {tuple(student.shape)}")
    check_same_outputs(student, teacher)
    target, log_probs = ((maps.flatten(2) / temperature).log_softmax(2) for maps in (teacher.detach(), student))
    return temperature**2 * kl_divergence(target, log_probs).mean(1)


class ChannelDivergence(Term):
    """``channel_divergence`` of a role of the student and one of the teacher, per sample (B,).

    A smaller map is enlarged bilinearly to the size of the other. If the numbers of channels differ, a 1x1 convolution
    (``adapter``), which is trained with the student and discarded, maps the student's to the teacher's; logits need as
    many classes.

    Args:
        role: the student's role.
        teacher_role: the teacher's role.
        temperature: T > 0.
    """

    reads_labels = False

    def __init__(self, role: str = "logits", teacher_role: str = "logits", temperature: float = 4.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.roles, self.teacher_role, self.temperature = (role,), teacher_role, temperature
        self.adapter: nn.Module | None = None

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's role."""
        return (self.teacher_role,)

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Create the adapter from the numbers of channels."""
        if self.adapter is not None or teacher is None:
            return
        features, target = student[self.roles[0]], teacher[self.teacher_role]
        if features.ndim != 4 or target.ndim != 4:
            raise TutelageError(
                f"channel-wise distillation needs maps (B, C, H, W), got the student's {self.roles[0]} "
                f"{tuple(features.shape)} and the teacher's {self.teacher_role} {tuple(target.shape)}; use networks "
                "for segmentation, or name layers that have maps"
            )
        equal = features.shape[1] == target.shape[1]
        if not equal and self.roles[0] == "logits":
            check_same_outputs(features, target)
        self.adapter = nn.Identity() if equal else nn.Conv2d(features.shape[1], target.shape[1], 1)
        self.adapter.to(at_least_float32(features))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        adapter = self.required(self.adapter, "an adapter", BUILD_FIRST)
        features = adapter(at_least_float32(student[self.roles[0]]))
        target = self.required(teacher)[self.teacher_role].detach()
        size = max(features.shape[2], target.shape[2]), max(features.shape[3], target.shape[3])
        return channel_divergence(resized(features, size), resized(target, size), self.temperature)
