"""The hinge losses of GANs: Lim, Ye 2017, arXiv 1705.02894; Miyato et al. 2018, arXiv 1802.05957."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def hinge(score: Tensor, *, genuine: bool) -> Tensor:
    """The hinge loss of a discriminator per sample: max(0, 1 - D(x)) for genuine images, max(0, 1 + D(x)) for others.

    Args:
        score: D(x), (B,) or (B, 1), without unit.
        genuine: whether the images are genuine.

    Returns:
        (B,): 1 for a score of 0, and 0 for a correct score beyond the margin.
    """
    score = score.flatten()
    return (1 - score if genuine else 1 + score).clamp(min=0)


class Hinge(Term):
    """``hinge`` of a discriminator, per sample (B,). The discriminator is the term's student, with the role ``score``.

    Args:
        genuine: whether the images of the batch are genuine.
    """

    reads_labels = False
    roles = ("score",)
    teacher_roles = ()

    def __init__(self, *, genuine: bool) -> None:
        super().__init__()
        self.genuine = genuine

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        return hinge(student["score"], genuine=self.genuine)


class Fooling(Term):
    """The loss of a generator, -D(G(z)), per sample (B,).

    Args:
        critic: the discriminator D, the model of another learner. It is not a submodule of this term, which does not
            train it.
    """

    reads_labels = False
    roles = ("image",)
    teacher_roles = ()

    def __init__(self, critic: Tapped) -> None:
        super().__init__()
        check_tapped("Fooling", critic)
        self._critic = (critic,)  # in a tuple, so that torch does not register it as a submodule

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit; may be negative."""
        (critic,) = self._critic
        return -critic.tap(student["image"], ("score",))["score"].flatten()
