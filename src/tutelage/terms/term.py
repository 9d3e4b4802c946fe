"""What a student is asked to match, and on which batch: the frames that terms and views fill in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs

Weight = float | Callable[[float], float]


class View:
    """Another batch made from the one at hand, for some of a learner's terms: boundary samples, an attack, a mix-up.

    The student and its source are shown that batch too, in a second pass of each.
    """

    roles: tuple[str, ...] = ()
    """What it reads of the student's answer to the batch at hand."""

    teacher_roles: tuple[str, ...] = ()
    """What it reads of the teacher's."""

    in_statistics: bool = True
    """Whether its batch counts in the running statistics of the student's batch normalisation."""

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The other batch; its ``weight`` says which samples count. No gradient is to flow through it."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(batch, student, teacher)")


class Term(nn.Module):
    """One thing to match: ``(student, teacher, batch)`` to a value per sample (B,), or to one value ().

    Where the mathematics has a value per sample the term gives it, and reduction, weights and schedules stay with the
    learner. A term computes in float32 at least; its gradient reaches the student and never the teacher. It may own
    parameters (a projection), which ``build`` makes from the shapes of a first batch and the learner then trains; they
    are never part of the student's file.

    A number or a schedule times a term weighs it: ``0.9 * SoftTargets(4)``. ``term.on(view)`` is the term on the batch
    that the view makes, ``term.between(view)`` the term between the student's answers to that batch and to the one at
    hand.
    """

    roles: tuple[str, ...] = ("logits",)
    """What it reads of the student. Without ``"logits"`` in any term, the student's pass ends at the last role."""

    reads_labels: bool = True
    """Whether it needs labels. Training is refused where a class has none, unless no term of any weight needs them."""

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """What it reads of the teacher; the same as of the student unless overridden, nothing for label losses.

        Once the term is built, digests may stand where layers did: an ``AnswerStore`` keeps them.
        """
        return self.roles

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check shapes and make what depends on them; called once, on the outputs for a first batch."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The term's value, (B,) or ()."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(student, teacher, batch)")

    def __call__(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """``forward`` outside of autocast, which would multiply matrices in half precision.

        Raises:
            TutelageError: for anything else than ``Outputs``.
        """
        for who, given in (("student", student), ("teacher", teacher)):
            if not isinstance(given, Outputs) and (who == "student" or given is not None):
                raise TutelageError(
                    f"{type(self).__name__} takes the {who}'s Outputs, got a {type(given).__name__}; "
                    "wrap logits as Outputs(logits), and features as Outputs(logits, {'stage1': features})"
                )
        if isinstance(batch, Tensor):
            raise TutelageError(
                f"{type(self).__name__} takes a Batch, got a tensor of shape {tuple(batch.shape)}; "
                "make a Batch(inputs, targets, index, key=None)"
            )
        with torch.autocast(student.device.type, enabled=False):
            value: Tensor = super().__call__(student, teacher, batch)
        return value

    def __mul__(self, weight: Weight) -> Weighted:
        return Weighted(self, weight)

    __rmul__ = __mul__

    def on(self, view: View) -> Weighted:
        """This term on the batch that ``view`` makes of the one at hand."""
        return Weighted(self, view=view)

    def between(self, view: View) -> Weighted:
        """This term on the batch that ``view`` makes, with the student's answer to the batch at hand for a teacher.

        Gradients flow into both answers, unless the term detaches its teacher's.
        """
        return Weighted(self, view=view, between=True)


class Weighted:
    """A term, its weight, a number or a function of progress in [0, 1], and its view if it has one.

    ``between`` says that the student's own answer to the batch at hand stands in the teacher's place.
    """

    def __init__(self, term: Term, weight: Weight = 1.0, view: View | None = None, *, between: bool = False) -> None:
        self.term, self.weight, self.view, self.between = term, weight, view, between

    @property
    def never(self) -> bool:
        """Whether the weight is 0 throughout."""
        return not callable(self.weight) and self.weight == 0

    def at(self, progress: float) -> float:
        """The weight at this point of the run."""
        return self.weight(progress) if callable(self.weight) else float(self.weight)

    def __mul__(self, factor: Weight) -> Weighted:
        weight = self.weight
        if callable(weight) or callable(factor):
            other = Weighted(self.term, factor)
            return self._weighing(lambda progress: other.at(progress) * self.at(progress))
        return self._weighing(factor * weight)

    def _weighing(self, weight: Weight) -> Weighted:
        return Weighted(self.term, weight, self.view, between=self.between)

    __rmul__ = __mul__
