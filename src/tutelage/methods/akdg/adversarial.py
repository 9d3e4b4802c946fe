"""The hinge form of adversarial training: Lim, Ye 2017, arXiv 1705.02894; Miyato et al. 2018, arXiv 1802.05957."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def hinge(score: Tensor, *, genuine: bool) -> Tensor:
    """max(0, 1 - D(x)) per sample of what is to be told apart as genuine, max(0, 1 + D(x)) of what is not.

    Args:
        score: D(x), (B,) or (B, 1), without a unit.
        genuine: which of the two.

    Returns:
        (B,): 1 where the critic says 0, 0 where it is sure of itself and right.
    """
    score = score.flatten()
    return (1 - score if genuine else 1 + score).clamp(min=0)


class Hinge(Term):
    """A critic's loss on images that are genuine, or that are not. The student is the critic, and gives ``score``."""

    reads_labels = False
    roles = ("score",)
    teacher_roles = ()

    def __init__(self, *, genuine: bool) -> None:
        super().__init__()
        self.genuine = genuine

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without a unit."""
        return hinge(student["score"], genuine=self.genuine)


class Fooling(Term):
    """A generator's loss, -D(G(z)) per sample: the critic is to take its images for genuine.

    Args:
        critic: D. It is no part of the term and learns nothing from it; it is another learner's model.
    """

    reads_labels = False
    roles = ("image",)
    teacher_roles = ()

    def __init__(self, critic: Tapped) -> None:
        super().__init__()
        check_tapped("Fooling", critic)
        self._critic = (critic,)  # in a tuple, where torch does not take it for a part of this module

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without a unit; may be negative."""
        (critic,) = self._critic
        return -critic.tap(student["image"], ("score",))["score"].flatten()
