"""Softened outputs: Hinton, Vinyals, Dean 2015, arXiv 1503.02531."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, classes_last
from tutelage.terms.cross_entropy import CrossEntropy
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term, Weighted


@full_precision
def kl_divergence(target_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """KL(target || other) = sum_c q_c (log q_c - log p_c), from logarithms: (..., C) twice to (...) nats.

    Raises:
        TutelageError: for two different shapes.
    """
    if target_log_probs.shape != log_probs.shape:
        raise TutelageError(
            f"outputs of shapes {tuple(log_probs.shape)} and {tuple(target_log_probs.shape)} cannot be compared; "
            "student and teacher need the same samples and classes"
        )
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
    """T^2 KL(softmax(v / T) || softmax(z / T)) per sample.

    z are the student's logits, v the teacher's; the sum runs over classes. The factor T^2 keeps the size of the
    gradient, T (p - q), comparable with that of the label loss when T changes. Zero means matched: this is the
    divergence, not the cross-entropy with soft labels, whose gradient is the same.

    Args:
        student_logits, teacher_logits: (B, C); or (B, T, C) for tokens or (B, C, H, W) for maps, of which the mean over
            all places is taken. No gradient reaches the teacher's.
        temperature: T > 0.
        mask: (B, T) or (B, H, W) bool: which places count; of samples (B, C) it is (B,). All unless given.
        axis: the class axis, where it is another one than above.

    Returns:
        (B,) nats times T^2; 0 for a sample of which nothing counts.
    """
    return _softened(Outputs(student_logits), Outputs(teacher_logits), temperature, mask, axis)


class SoftTargets(Term):
    """``soft_targets`` of the student's and the teacher's logits, per sample (B,).

    Several teachers are averaged as softened *probabilities*, as the paper's ensembles are.

    Args:
        temperature: T > 0.
        ignore_index: the label of samples, tokens and pixels that do not count, padding for instance (-100 in torch);
            the term then reads labels. All count unless it is given, those without a label too.
        axis: as in ``soft_targets``.
    """

    def __init__(self, temperature: float = 4.0, ignore_index: int | None = None, axis: int | None = None) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"the temperature must be a finite number above 0, got {temperature}")
        self.temperature, self.ignore_index, self.axis = temperature, ignore_index, axis
        self.reads_labels = ignore_index is not None

    def mask(self, batch: Batch | None) -> Tensor | None:
        """Those whose label is not ``ignore_index``."""
        return None if batch is None or self.ignore_index is None else batch.targets != self.ignore_index

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats times T^2."""
        if teacher is None:
            raise ValueError("SoftTargets needs a teacher's outputs")
        return _softened(student, teacher, self.temperature, self.mask(batch), self.axis)


def labels_and_soft_targets(alpha: float, temperature: float = 4.0) -> dict[str, Weighted]:
    """Hinton's loss as terms: (1 - alpha) CE(z, y) + alpha T^2 KL; with alpha = 0 the label loss alone."""
    terms = {"ce": (1 - alpha) * CrossEntropy()}
    return terms | {"kd": alpha * SoftTargets(temperature)} if alpha else terms


def _softened(
    student: Outputs, teacher: Outputs, temperature: float, mask: Tensor | None = None, axis: int | None = None
) -> Tensor:
    log_probs = [classes_last(each.log_probs(temperature, axis), axis) for each in (teacher.detach(), student)]
    each = temperature**2 * kl_divergence(*log_probs)
    if mask is not None:
        if mask.shape != each.shape:
            raise TutelageError(
                f"what counts of logits {tuple(student['logits'].shape)} must be {tuple(each.shape)}, got shape "
                f"{tuple(mask.shape)}; give one value for each sample, token or pixel"
            )
        each, counts = each.where(mask.bool(), 0.0).view(len(each), -1), mask.bool().view(len(each), -1).sum(1)
        return each.sum(1) / counts.clamp(min=1)
    return each if each.ndim == 1 else each.flatten(1).mean(1)
