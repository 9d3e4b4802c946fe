"""Knowledge distillation from a stronger teacher (DIST): Huang, You, Wang, Qian, Xu 2022, arXiv 2205.10536."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_same_outputs
from tutelage.terms.term import Term
from tutelage.terms.unit import unit


@full_precision
def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - rho(a, b), with Pearson's correlation rho over the last axis.

    Args:
        a, b: (..., D).

    Returns:
        (...), from 0 to 2; 1 where either is constant (a standard deviation below 1e-8 / sqrt(D)), without gradient.
    """
    a, b = (unit(values - values.mean(-1, keepdim=True), smallest=1e-8) for values in (a, b))
    return 1 - (a * b).sum(-1)


@full_precision
def inter_class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """DIST's relation between the classes of a sample: T^2 (1 - rho(p_i^S, p_i^T)) of its probabilities.

    Args:
        student_logits, teacher_logits: (B, C). No gradient reaches the teacher's.
        temperature: T > 0 of the softmax.

    Returns:
        (B,).
    """
    return _inter(*_probabilities(Outputs(student_logits), Outputs(teacher_logits), temperature), temperature)


@full_precision
def intra_class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """DIST's relation between the samples of a class: the mean over classes of T^2 (1 - rho(p_.j^S, p_.j^T)).

    Args:
        student_logits, teacher_logits: (B, C). No gradient reaches the teacher's.
        temperature: T > 0 of the softmax.

    Returns:
        (), one value for the batch.
    """
    return _intra(*_probabilities(Outputs(student_logits), Outputs(teacher_logits), temperature), temperature)


class _Relation(Term):
    """A relation of two batches of probabilities. Several teachers are averaged as softened probabilities."""

    reads_labels = False

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.temperature = temperature

    def probabilities(self, student: Outputs, teacher: Outputs | None) -> tuple[Tensor, Tensor]:
        """The softened probabilities of student and teacher, (B, C) each."""
        return _probabilities(student, self.required(teacher), self.temperature)


class InterClassRelation(_Relation):
    """``inter_class_relation`` of the student's and the teacher's logits, per sample (B,)."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        return _inter(*self.probabilities(student, teacher), self.temperature)


class IntraClassRelation(_Relation):
    """``intra_class_relation`` of the student's and the teacher's logits: one value ()."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), without unit."""
        return _intra(*self.probabilities(student, teacher), self.temperature)


def _probabilities(student: Outputs, teacher: Outputs, temperature: float) -> tuple[Tensor, Tensor]:
    p, q = (class_logits(outputs.log_probs(temperature)).exp() for outputs in (student, teacher.detach()))
    check_same_outputs(p, q)
    return p, q


def _inter(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    return temperature**2 * pearson_distance(p, q)


def _intra(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    return temperature**2 * pearson_distance(p.T, q.T).mean()
