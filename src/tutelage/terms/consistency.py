"""The same answer whatever the network and the view: Tarvainen, Valpola 2017, arXiv 1703.01780."""

from __future__ import annotations

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs, class_logits
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term


@full_precision
def softmax_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1/C sum_c (softmax(z)_c - softmax(v)_c)^2 per sample.

    z are the student's logits, v the teacher's. The mean over classes is that of the authors' code; a weight here is C
    times one on the squared distance of the probabilities.

    Args:
        student_logits, teacher_logits: (B, C); no gradient reaches the teacher's.

    Returns:
        (B,), no unit.
    """
    return _distance(Outputs(student_logits), Outputs(teacher_logits))


class SoftmaxMSE(Term):
    """``softmax_mse`` of the student's and the teacher's logits, per sample (B,).

    It needs no label. Several teachers are averaged as probabilities.
    """

    reads_labels = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), no unit."""
        if teacher is None:
            raise ValueError("SoftmaxMSE needs a teacher's outputs")
        return _distance(student, teacher)


def _distance(student: Outputs, teacher: Outputs) -> Tensor:
    class_logits(student["logits"])
    ours, theirs = student.log_probs().exp(), teacher.detach().log_probs().exp()
    if ours.shape != theirs.shape:
        raise TutelageError(
            f"outputs of shapes {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be compared; "
            "student and teacher need the same samples and classes"
        )
    return (ours - theirs).square().mean(-1)
