"""Metrics of a network's predictions: pure functions of tensors, computed in float32 or higher precision.

Everywhere ``logits`` are (N, C) floats and ``labels`` are (N,) int64 class numbers, ``-1`` for samples without
a label; metrics that need labels exclude such samples. A mean over no samples is NaN. Among equal logits the
lowest class is predicted. ``ValueError`` is raised for shapes that do not match and for labels outside
-1 .. C - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.models.outputs import at_least_float32


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of samples whose largest logit is that of the label: 0-d, in [0, 1]."""
    logits, labels = only_labelled(logits, labels)
    return _correct(logits, labels).mean()


def top_accuracy(logits: Tensor, labels: Tensor, count: int = 5) -> Tensor:
    """Return the share of samples whose label is among the ``count`` largest logits: 0-d, in [0, 1].

    Among equal logits the lower class comes first.
    """
    logits, labels = only_labelled(logits, labels)
    ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :count]
    return (ranked == labels[:, None]).any(1).to(logits.dtype).mean()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the confusion matrix, (C, C) int64: entry (i, j) counts samples of class i that are predicted as j."""
    logits, labels = only_labelled(logits, labels)
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def per_class_precision(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of each class's predictions that is correct: (C,), NaN for a class that is never predicted.

    The recall of a class is its ``per_class_accuracy``.
    """
    counts = confusion(logits, labels)
    return (counts.diagonal().double() / counts.sum(0)).to(at_least_float32(logits).dtype)


def macro_auroc(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over classes of the area under the ROC curve of a class against all others: 0-d, in [0, 1].

    The score is the probability of the class; the area is the share of pairs of a sample of the class and another one
    that it orders correctly, ties counting half. The mean is over classes with samples, unless all are of one class.
    """
    logits, labels = only_labelled(logits, labels)
    areas = [_auroc(scores, labels == c) for c, scores in enumerate(logits.double().softmax(1).T.contiguous())]
    return torch.stack(areas).nanmean().to(logits.dtype)


def _auroc(scores: Tensor, positive: Tensor) -> Tensor:
    ordered = scores.sort().values
    ranks = 0.5 * (torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True) + 1).double()
    count = positive.sum()
    return (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of each class's samples that is predicted correctly: (C,), NaN for a class without samples."""
    logits, labels = only_labelled(logits, labels)
    classes = logits.shape[1]
    hits = torch.bincount(labels[logits.argmax(1) == labels], minlength=classes)
    return hits.to(logits.dtype) / torch.bincount(labels, minlength=classes).to(logits.dtype)


def worst_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the lowest per-class accuracy, over the classes that have samples: 0-d."""
    accuracies = per_class_accuracy(logits, labels)
    lowest = accuracies.nan_to_num(nan=torch.inf).min()
    return lowest.where(lowest.isfinite(), torch.nan)


def per_class_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each class's F1 score, 2 TP / (2 TP + FP + FN): (C,), in [0, 1].

    F1 is the harmonic mean of precision and recall; NaN for a class that is neither a label nor predicted.
    """
    logits, labels = only_labelled(logits, labels)
    classes, predicted = logits.shape[1], logits.argmax(1)
    hits = torch.bincount(labels[predicted == labels], minlength=classes)
    # TP + FP are the predictions of a class, TP + FN its labels.
    sizes = torch.bincount(predicted, minlength=classes) + torch.bincount(labels, minlength=classes)
    return 2 * hits.to(logits.dtype) / sizes.to(logits.dtype)


def macro_f1(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of ``per_class_f1`` over the classes for which it is defined: 0-d."""
    return per_class_f1(logits, labels).nanmean()


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the labels: 0-d, in nats."""
    logits, labels = only_labelled(logits, labels)
    return F.cross_entropy(logits, labels)


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the squared error of the probabilities, summed over classes, mean over samples: 0-d, in [0, 2].

    Brier, "Verification of forecasts expressed in terms of probability", 1950. (Some libraries halve it or
    take the mean over classes.)
    """
    logits, labels = only_labelled(logits, labels)
    target = F.one_hot(labels, logits.shape[1])
    return (logits.softmax(1) - target).square().sum(1).mean()


@dataclass(frozen=True, slots=True)
class Reliability:
    """The data of a reliability diagram: accuracy by confidence.

    Attributes:
        count: (bins,) int64, number of samples in each bin.
        accuracy: (bins,) float, accuracy in each bin; NaN in an empty bin.
        confidence: (bins,) float, mean confidence in each bin; NaN in an empty bin.
    """

    count: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def error(self) -> Tensor:
        """The expected calibration error: the bins' |accuracy - confidence|, weighted by count; 0-d."""
        weight = self.count.to(self.accuracy.dtype) / self.count.sum()
        gap = (self.accuracy - self.confidence).abs()
        # An empty bin has weight 0; if all bins are empty, the weights and the sum are NaN.
        return (weight * gap.where(self.count > 0, 0.0)).sum()


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Group the samples into ``bins`` equal-width bins of the largest probability.

    Bin b is (b / bins, (b + 1) / bins], as in Guo et al. 2017, section 2: a confidence on an edge belongs to
    the bin below it, a confidence of 1 to the last bin and of 0 to the first. (torchmetrics closes its bins
    on the left and has an extra bin for a confidence of exactly 1.)

    Raises:
        ValueError: ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"at least one bin is needed, got {bins}")
    logits, labels = only_labelled(logits, labels)
    confidence, correct = _confidence(logits), _correct(logits, labels)
    # linspace does not guarantee the float nearest to each edge, which a confidence of exactly 3/15 needs.
    edges = torch.tensor([b / bins for b in range(1, bins)], dtype=logits.dtype, device=logits.device)
    bin_index = torch.bucketize(confidence, edges)
    # A comparison and a sum are deterministic on a GPU too; adding by index is not.
    member = bin_index[:, None] == torch.arange(bins, device=logits.device)
    count = member.sum(0)
    return Reliability(
        count=count,
        accuracy=(member * correct[:, None]).sum(0) / count,
        confidence=(member * confidence[:, None]).sum(0) / count,
    )


def ece(logits: Tensor, labels: Tensor, n_bins: int = 15) -> Tensor:
    """Return the expected calibration error of the largest probability, in equal-width bins: 0-d, in [0, 1].

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, eq. 3. The bins and
    their edges are those of ``reliability``.
    """
    return reliability(logits, labels, n_bins).error


def calibration_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """Return mean confidence minus accuracy: 0-d, in [-1, 1]; positive if over-confident."""
    logits, labels = only_labelled(logits, labels)
    return _confidence(logits).mean() - _correct(logits, labels).mean()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the share of samples for which both predict the same class, correct or not: 0-d, in [0, 1]."""
    student, teacher = _pair(student_logits, teacher_logits)
    return (student.argmax(1) == teacher.argmax(1)).to(student.dtype).mean()


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(teacher || student) at temperature 1, summed over classes, mean over samples: 0-d, in nats, >= 0."""
    student, teacher = _pair(student_logits, teacher_logits)
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    return divergence.sum(1).mean()


def wrongly_labelled(given_labels: Tensor, clean_labels: Tensor) -> Tensor:
    """Return where both the given and the clean label exist and differ: (N,) int64 each to (N,) bool."""
    if given_labels.ndim != 1 or given_labels.shape != clean_labels.shape:
        raise ValueError(
            f"given and clean labels must both be (N,), got {_shape(given_labels)} and {_shape(clean_labels)}"
        )
    both_labelled = (given_labels != UNLABELLED) & (clean_labels != UNLABELLED)
    return both_labelled & (given_labels != clean_labels)


def memorised(logits: Tensor, given_labels: Tensor, clean_labels: Tensor) -> Tensor:
    """Return the share of wrongly labelled samples for which the network predicts the wrong label.

    0-d, in [0, 1]: 0 if the network memorised none of the wrong labels, 1 if it memorised all; NaN if no label
    is wrong. Meant for the training split, which contains the wrong labels.
    """
    wrong = wrongly_labelled(given_labels, clean_labels)
    _check(logits, clean_labels)
    return accuracy(logits, given_labels.where(wrong, UNLABELLED))


def only_labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Check and return the labelled samples, with logits in float32 or higher precision."""
    _check(logits, labels)
    labelled = labels != UNLABELLED
    return at_least_float32(logits[labelled]), labels[labelled]


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels):
        raise ValueError(f"logits (N, C) and labels (N,) are needed, got {_shape(logits)} and {_shape(labels)}")
    classes = logits.shape[1]
    if len(labels) and not ((labels >= UNLABELLED) & (labels < classes)).all():
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels must lie in -1 .. {classes - 1}, got {low} .. {high}")


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"student and teacher logits must both be (N, C), got {_shape(student)} and {_shape(teacher)}")
    return at_least_float32(student), at_least_float32(teacher)


def _confidence(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).to(logits.dtype)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
