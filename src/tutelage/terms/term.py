"""The base classes of terms (what a student matches) and of views (on which batch)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.inputs import as_batch
from tutelage.models.outputs import Outputs
from tutelage.terms.plain import Values, flatten_positions, outputs_of

T = TypeVar("T")

Weight = float | Callable[[float], float]

PASS_ALL = "pass (student, teacher, batch), as a learner with a source does"
"""The remedy for a term without outputs of a teacher or without a batch."""

BUILD_FIRST = "call build(student, teacher) before its first use and before you create the optimizer"
"""The remedy for a term without the parameters that ``build`` creates."""


class View:
    """A second batch derived from the current one, for some of a learner's terms: boundary samples, attacked images.

    The student and its source each run that batch in an additional forward pass.
    """

    roles: tuple[str, ...] = ()
    """Which of the student's outputs for the current batch it reads."""

    teacher_roles: tuple[str, ...] = ()
    """Which of the teacher's outputs for the current batch it reads."""

    updates_statistics: bool = True
    """Whether its batch updates the running statistics of the student's batch normalisation."""

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """Return the derived batch, without gradients; its ``weight`` says which samples count."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(batch, student, teacher)")


class Term(nn.Module):
    """A loss as a module: ``(student, teacher, batch)`` to a value per sample (B,), or to one value ().

    A term returns a value per sample wherever the loss is defined for single samples; the learner reduces, weights and
    schedules it. It computes in float32 or float64; its gradient reaches the student and never the teacher. A term may
    have parameters of its own (a projection), which ``build`` creates from the shapes of a first batch and the learner
    trains; they are never saved with the student.

    In your own training loop, call it with plain tensors. It then returns their mean, (): ``SoftTargets(4)(
    student_logits, teacher_logits)``, ``CrossEntropy()(logits, labels)``. Pass a tensor for a term that reads one role
    and a mapping, ``{"stage1": tensor, ...}``, for one that reads several. The labels come third, or second for a term
    that reads no teacher. Each token of logits (B, T, C) and each pixel of (B, C, H, W) then counts as a sample.

    Multiply a term by a number or a schedule to weight it: ``0.9 * SoftTargets(4)``. ``term.on(view)`` applies it to
    the batch of a view; ``term.between(view, other)`` compares the student's outputs for the batches of two views.
    """

    roles: tuple[str, ...] = ("logits",)
    """Which outputs of the student it reads. If no term reads ``"logits"``, the forward pass stops at the last role."""

    reads_teacher: bool = True
    """Whether it reads outputs of a teacher; label losses do not."""

    reads_labels: bool = True
    """Whether it needs labels. A class without labels is an error if any term with a non-zero weight needs them."""

    uses_soft_labels: bool = False
    """Whether all entries of soft labels enter its value, rather than their largest class; mixtures require it."""

    reads_index: bool = False
    """Whether it reads ``Batch.index``, for example for a memory of all samples; mixtures have none."""

    axis: int | None = None
    """The class axis of logits with more than two axes; ``None`` for the rule of ``class_axis``."""

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """Which outputs of the teacher it reads: the student's roles unless overridden.

        A built term may name derived roles in place of layers, since teacher outputs are cached as derived roles.
        """
        return self.roles if self.reads_teacher else ()

    def build(self, student: Outputs, teacher: Outputs | None) -> None:
        """Check shapes and create what depends on them. Called once, with the outputs for a first batch."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """Return the term's value, (B,) or ()."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(student, teacher, batch)")

    def required(self, value: T | None, noun: str = "a teacher's outputs", remedy: str = PASS_ALL) -> T:
        """Return something that this term cannot do without: an argument of ``forward``, or what ``build`` creates.

        Raises:
            TutelageError: it is ``None``; the message has the noun and the remedy.
        """
        if value is None:
            raise TutelageError(f"{type(self).__name__} needs {noun} and has none; {remedy}")
        return value

    def mask(self, batch: Batch | None) -> Tensor | None:
        """Which samples count in ``mean``, (B,) bool; ``None`` if all do."""
        return None

    def __call__(self, student: Values, teacher: Values | None = None, batch: Batch | Tensor | None = None) -> Tensor:
        """Compute ``forward`` with autocast disabled, which would multiply matrices in half precision.

        Args:
            student, teacher: ``Outputs``, or plain tensors as described above.
            batch: a ``Batch``, or labels.

        Returns:
            The term's value, (B,) or (); for plain tensors their ``mean``, ().

        Raises:
            TutelageError: an argument of another type.
        """
        if not (
            isinstance(student, Outputs) and isinstance(teacher, Outputs | None) and isinstance(batch, Batch | None)
        ):
            return self._mean_of_tensors(student, teacher, batch)
        outputs = student if teacher is None or self.roles else teacher
        with torch.autocast(outputs.device.type, enabled=False):
            value: Tensor = super().__call__(student, teacher, batch)
        return value

    def mean(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The mean of the term over the samples that count, ().

        If the term reads logits alone, each token of (B, T, C) and each pixel of (B, C, H, W) is a sample. Samples that
        ``mask`` excludes are not in the mean, unlike in a ``Learner``, whose mean runs over the whole batch.
        """
        if {*self.roles, *self.teacher_roles} <= {"logits"}:
            student, teacher, batch = flatten_positions(
                student, teacher, batch, self.axis, reads_labels=self.reads_labels
            )
        value = self(student, teacher, batch)
        mask = self.mask(batch) if value.ndim else None
        if mask is None:
            return value.mean()
        return value.where(mask, 0.0).sum() / mask.sum().clamp(min=1)

    def outputs(self, student: object, teacher: object) -> tuple[Outputs, Outputs]:
        """Convert the outputs of student and teacher, plain tensors or not, to ``Outputs``.

        Raises:
            TutelageError: the term's roles cannot be read from them.
        """
        name = type(self).__name__
        return (
            outputs_of(student, self.roles, f"{name}: the student"),
            outputs_of(teacher, self.teacher_roles, f"{name}: the teacher"),
        )

    def _mean_of_tensors(self, student: object, teacher: object, batch: object) -> Tensor:
        name = type(self).__name__
        if not self.teacher_roles and batch is None:
            teacher, batch = None, teacher
        if batch is None and self.reads_labels:
            raise TutelageError(f"{name} needs labels; pass them last: {name}()(logits, labels)")
        if teacher is None and self.teacher_roles:
            raise TutelageError(f"{name} needs the teacher's outputs; pass them second: {name}()(student, teacher)")
        if not isinstance(batch, Batch | Tensor | None):
            raise TutelageError(f"{name} takes a Batch or a tensor of labels, got a {type(batch).__name__}")
        student, teacher = self.outputs(student, teacher if self.teacher_roles else Outputs(None))
        return self.mean(
            student,
            teacher if self.teacher_roles else None,
            as_batch(batch, batch) if isinstance(batch, Tensor) else batch,
        )

    def __mul__(self, weight: Weight) -> Weighted:
        return Weighted(self, weight)

    __rmul__ = __mul__

    def on(self, view: View | None) -> Weighted:
        """This term on the batch that ``view`` derives from the current one; with ``None`` on the current batch."""
        return Weighted(self, view=view)

    def between(self, view: View | None, other: View | None = None) -> Weighted:
        """This term on the batch of ``view``, with the student's outputs for that of ``other`` in the teacher's place.

        ``None`` is the current batch. Gradients flow into both outputs, unless the term detaches the teacher's.
        """
        return Weighted(self, view=view, between=True, other=other)

    def for_all_samples(self) -> Weighted:
        """This term without the learner's ``sample_weight``: all samples of the batch count equally.

        A weight that judges the label, for example, should not weight a term that does not read it. The weights of the
        batch itself (``Batch.weight``) still apply.
        """
        return Weighted(self).for_all_samples()


class Weighted:
    """A term with its weight and, if it has one, its view.

    Args:
        term: the term.
        weight: a number, or a function of the progress of the fit in [0, 1].
        view: the view whose batch the term is computed on; ``None`` for the current batch.
        between: whether the student's outputs for the batch of ``other`` take the teacher's place.
        other: a view; ``None`` for the current batch.
        all_samples: whether the learner's ``sample_weight`` does not apply.
    """

    def __init__(
        self,
        term: Term,
        weight: Weight = 1.0,
        view: View | None = None,
        *,
        between: bool = False,
        other: View | None = None,
        all_samples: bool = False,
    ) -> None:
        self.term, self.weight, self.view, self.between, self.other = term, weight, view, between, other
        self.all_samples = all_samples

    @property
    def is_off(self) -> bool:
        """Whether the weight is the constant 0."""
        return not callable(self.weight) and self.weight == 0

    def at(self, progress: float) -> float:
        """The weight at this progress of the fit."""
        return self.weight(progress) if callable(self.weight) else float(self.weight)

    def __mul__(self, factor: Weight) -> Weighted:
        weight = self.weight
        if callable(weight) or callable(factor):
            other = Weighted(self.term, factor)
            return self._with(lambda progress: other.at(progress) * self.at(progress))
        return self._with(factor * weight)

    def _with(self, weight: Weight) -> Weighted:
        changed = copy.copy(self)
        changed.weight = weight
        return changed

    def for_all_samples(self) -> Weighted:
        """The same without the learner's ``sample_weight``."""
        changed = copy.copy(self)
        changed.all_samples = True
        return changed

    __rmul__ = __mul__
