"""Soft targets (Hinton's distillation loss): Hinton, Vinyals, Dean 2015, arXiv 1503.02531."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, classes_last
from tutelage.terms.cross_entropy import CrossEntropy
from tutelage.terms.precision import full_precision
from tutelage.terms.shapes import check_same_outputs
from tutelage.terms.term import Term, Weighted


@full_precision
def kl_divergence(target_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """KL(q || p) = sum_c q_c (log q_c - log p_c) of two distributions over the last axis.

    Args:
        target_log_probs: log q, (..., C).
        log_probs: log p, of the same shape.

    Returns:
        (...) nats.

    Raises:
        TutelageError: the shapes differ.
    """
    check_same_outputs(log_probs, target_log_probs)
    terms = target_log_probs.exp() * (target_log_probs - log_probs)
    return terms.where(target_log_probs != float("-inf"), 0.0).sum(-1)  # 0 log 0 = 0, and a NaN stays


@full_precision
def soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    mask: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Hinton's distillation loss, T^2 KL(softmax(v / T) || softmax(z / T)), per sample.

    z are the student's logits, v the teacher's; the sum runs over classes. The factor T^2 keeps the size of the
    gradient, T (p - q), comparable with that of the label loss when T changes. The value is 0 if the two agree: it is
    the divergence, not the cross-entropy with soft labels, whose gradient is the same.

    Args:
        student_logits, teacher_logits: (B, C); or tokens (B, T, C) or maps (B, C, H, W), over whose positions the mean
            is taken. No gradient reaches the teacher's.
        temperature: T > 0.
        mask: which positions count, bool: (B, T), (B, H, W), or (B,) for samples (B, C). ``None`` for all.
        axis: the class axis, if it is not the one above.

    Returns:
        (B,) nats times T^2; 0 for a sample of which no position counts.
    """
    return _soft_targets(Outputs(student_logits), Outputs(teacher_logits), temperature, mask, axis)


class SoftTargets(Term):
    """``soft_targets`` of the student's and the teacher's logits, per sample (B,).

    Several teachers are averaged as softened *probabilities*, as the paper's ensembles are.

    Args:
        temperature: T > 0.
        ignore_index: the label of samples, tokens and pixels that do not count, for example padding (-100 in torch);
            the term then reads labels. With ``None`` all count, also those without a label.
        axis: as in ``soft_targets``.
    """

    def __init__(self, temperature: float = 4.0, ignore_index: int | None = None, axis: int | None = None) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise TutelageError(f"the temperature must be a finite number above 0, got {temperature}")
        self.temperature, self.ignore_index, self.axis = temperature, ignore_index, axis
        self.reads_labels = ignore_index is not None

    def mask(self, batch: Batch | None) -> Tensor | None:
        """Those whose label is not ``ignore_index``."""
        return None if batch is None or self.ignore_index is None else batch.targets != self.ignore_index

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        return _soft_targets(student, self.required(teacher), self.temperature, self.mask(batch), self.axis)


def labels_and_soft_targets(alpha: float, temperature: float = 4.0) -> dict[str, Weighted]:
    """The terms of Hinton's loss, (1 - alpha) CE(z, y) + alpha T^2 KL; with alpha = 0 the label loss alone."""
    terms = {"ce": (1 - alpha) * CrossEntropy()}
    return terms | {"kd": alpha * SoftTargets(temperature)} if alpha else terms


def _soft_targets(
    student: Outputs, teacher: Outputs, temperature: float, mask: Tensor | None = None, axis: int | None = None
) -> Tensor:
    target, log_probs = (classes_last(o.log_probs(temperature, axis), axis) for o in (teacher.detach(), student))
    values = temperature**2 * kl_divergence(target, log_probs)
    if mask is None:
        return values if values.ndim == 1 else values.flatten(1).mean(1)
    if mask.shape != values.shape:
        raise TutelageError(
            f"the mask of logits {tuple(student['logits'].shape)} must be {tuple(values.shape)}, got shape "
            f"{tuple(mask.shape)}; give one value for each sample, token or pixel"
        )
    counts = mask.bool().view(len(values), -1).sum(1)
    return values.where(mask.bool(), 0.0).view(len(values), -1).sum(1) / counts.clamp(min=1)
