"""The consistency loss of Mean Teacher: Tarvainen, Valpola 2017, arXiv 1703.01780."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def softmax_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean squared difference of probabilities, 1/C sum_c (softmax(z)_c - softmax(v)_c)^2, per sample.

    z are the student's logits, v the teacher's. The mean over classes is that of the authors' code: the squared
    distance of the probabilities is C times this.

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.

    Returns:
        (B,), no unit.
    """
    return _distance(Outputs(student_logits), Outputs(teacher_logits))


class SoftmaxMSE(Term):
    """``softmax_mse`` of the student's and the teacher's logits, per sample (B,).

    Several teachers are averaged as probabilities.
    """

    reads_labels = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), no unit."""
        return _distance(student, self.required(teacher))


def _distance(student: Outputs, teacher: Outputs) -> Tensor:
    class_logits(student["logits"])
    probs, target = student.log_probs().exp(), teacher.detach().log_probs().exp()
    if probs.shape != target.shape:
        raise TutelageError(
            f"outputs of shapes {tuple(probs.shape)} and {tuple(target.shape)} cannot be compared; "
            "student and teacher need the same samples and classes"
        )
    return (probs - target).square().mean(-1)
