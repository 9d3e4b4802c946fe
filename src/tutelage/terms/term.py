"""What a student is asked to match, and on which batch: the frames that terms and views fill in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.inputs import as_batch
from tutelage.models.outputs import Outputs
from tutelage.terms.plain import Values, by_place, outputs_of

Weight = float | Callable[[float], float]

BUILD_FIRST = (
    "build(student, teacher) once before it is used and before the optimiser is made, for it has weights to learn"
)


class View:
    """Another batch made from the one at hand, for some of a learner's terms: boundary samples, an attack, a mix-up.

    The student and its source are shown that batch too, in a second pass of each.
    """

    roles: tuple[str, ...] = ()
    """What it reads of the student's answer to the batch at hand."""

    teacher_roles: tuple[str, ...] = ()
    """What it reads of the teacher's."""

    updates_statistics: bool = True
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

    In a loop of one's own it takes plain tensors too, and gives their mean, (): ``SoftTargets(4)(student_logits,
    teacher_logits)``, ``CrossEntropy()(logits, labels)``. A tensor stands for the one role that the term reads; a term
    that reads several takes a mapping, ``{"stage1": tensor, ...}``. The labels come third, or second for a term that
    reads no teacher. Of logits (B, T, C) and (B, C, H, W) each token and each pixel then counts as a sample.

    A number or a schedule times a term weighs it: ``0.9 * SoftTargets(4)``. ``term.on(view)`` is the term on the batch
    that the view makes, ``term.between(view)`` the term between the student's answers to that batch and to the one at
    hand.
    """

    roles: tuple[str, ...] = ("logits",)
    """What it reads of the student. Without ``"logits"`` in any term, the student's pass ends at the last role."""

    reads_labels: bool = True
    """Whether it needs labels. Training is refused where a class has none, unless no term of any weight needs them."""

    axis: int | None = None
    """The class axis of logits of more than two axes, where it is another one than in ``class_axis``."""

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

    def mask(self, batch: Batch | None) -> Tensor | None:
        """Which samples count in ``mean``, (B,) bool; ``None`` for all of them."""
        return None

    def __call__(self, student: Values, teacher: Values | None = None, batch: Batch | Tensor | None = None) -> Tensor:
        """``forward`` outside of autocast, which would multiply matrices in half precision.

        Args:
            student, teacher: ``Outputs``; or plain tensors, as above.
            batch: a ``Batch``; or labels.

        Returns:
            The term's value, (B,) or (); of plain tensors their ``mean``, ().

        Raises:
            TutelageError: for anything else.
        """
        if not (
            isinstance(student, Outputs) and isinstance(teacher, Outputs | None) and isinstance(batch, Batch | None)
        ):
            return self._of_plain(student, teacher, batch)
        with torch.autocast(student.device.type, enabled=False):
            value: Tensor = super().__call__(student, teacher, batch)
        return value

    def mean(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The mean of the term over all that counts, ().

        Where it reads logits alone, each token of (B, T, C) and each pixel of (B, C, H, W) is a sample. Samples that
        ``mask`` leaves out are not in the mean, unlike in a ``Learner``, whose mean runs over the whole batch.
        """
        if {*self.roles, *self.teacher_roles} <= {"logits"}:
            student, teacher, batch = by_place(student, teacher, batch, self.axis, reads_labels=self.reads_labels)
        value = self(student, teacher, batch)
        counts = self.mask(batch) if value.ndim else None
        if counts is None:
            return value.mean()
        return value.where(counts, 0.0).sum() / counts.sum().clamp(min=1)

    def outputs(self, student: object, teacher: object) -> tuple[Outputs, Outputs]:
        """What student and teacher gave, plain or not, as ``Outputs``.

        Raises:
            TutelageError: it cannot be read as what the term reads.
        """
        who = type(self).__name__
        return (
            outputs_of(student, self.roles, f"{who}, of the student,"),
            outputs_of(teacher, self.teacher_roles, f"{who}, of the teacher,"),
        )

    def _of_plain(self, student: object, teacher: object, batch: object) -> Tensor:
        who = type(self).__name__
        if not self.teacher_roles and batch is None:
            teacher, batch = None, teacher
        if batch is None and self.reads_labels:
            raise TutelageError(f"{who} needs labels; give them last: {who}()(logits, labels)")
        if teacher is None and self.teacher_roles:
            raise TutelageError(f"{who} needs what the teacher gave; give it second: {who}()(student, teacher)")
        if not isinstance(batch, Batch | Tensor | None):
            raise TutelageError(f"{who} takes a Batch or labels, a tensor, got a {type(batch).__name__}")
        taken, taught = self.outputs(student, Outputs(None) if teacher is None or not self.teacher_roles else teacher)
        return self.mean(
            taken,
            taught if self.teacher_roles else None,
            as_batch(batch, batch) if isinstance(batch, Tensor) else batch,
        )

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
    def is_off(self) -> bool:
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
