"""Batch normalisation of the logits, for rare classes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.batch import hard_labels
from tutelage.data.data import Split
from tutelage.data.targets import class_counts
from tutelage.errors import TutelageError
from tutelage.methods import method
from tutelage.models.surgery.final_bn import apply
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner, Lesson
from tutelage.training.run import Run


@method(paper="Kocaman, Shir, Baeck 2020, arXiv 2011.06319", family="imbalance", evidence="abstract")
def final_bn(
    run: Run,
    *,
    position: Literal["logits", "penultimate"] = "logits",
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1,
    affine: bool = True,
    weighted: bool = False,
) -> Tapped:
    """Final batch normalisation: a frequent class can no longer win by an offset of its logit.

    L = CE(z', y), z'_k = gamma_k (z_k - mu_k) / sqrt(var_k + eps) + beta_k, with mean and variance of the batch, and
    running ones in eval mode. At most one of the classes is to be frequent. Accuracy and loss say little where classes
    are rare: look at ``macro_f1`` and ``per_class_f1``, on test data in which they are not. Confidence falls, which is
    not calibration. ``tutelage.models.surgery.final_bn.fold`` gives the same function as a plain network; distil from
    that, since a unit variance gives the logits, and so a temperature, another meaning.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        position: where the layer is: on the logits, or on the features that the classifier is given. "Just before the
            output layer" can be read either way; the follow-up paper's "before the softmax output layer" is the first.
        momentum: the weight of a batch in the running statistics; 0.1 is the frameworks' usual one, 0.01 that of
            fastai's ``bn_final``, which the authors may have used [from memory] and which wants some hundred steps.
        affine: whether gamma and beta are there, and learn [inferred].
        weighted: weigh each sample by N / (C n_y), its class's inverse frequency; the paper studies it, with the layer
            and without [from memory]. By the method's own name it is with the layer.

    Deviations: the paper fine-tunes networks trained on ImageNet; here any student is trained, and a pre-trained one if
    the run says so. Weighted losses are averaged over the batch, and not divided by the sum of its weights.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("final batch normalisation is over the batch; take a batch size of 2 or more")
    student = run.student()
    example = run.example(student)
    apply(student.module, example, position=position, momentum=momentum, affine=int(affine))
    weight = InverseFrequency(run.data.train, run.data.num_classes) if weighted else None
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, sample_weight=weight))
    return student


class InverseFrequency(nn.Module):
    """A sample weight: w = N / (C n_y), with n_y the training samples of the label's class, N of all labelled ones.

    Its mean over the training part is 1. Soft labels count as their largest class.
    """

    weights: Tensor

    def __init__(self, train: Split, num_classes: int) -> None:
        super().__init__()
        counts = torch.tensor(class_counts(train.labels, num_classes))
        self.register_buffer("weights", counts.sum() / (num_classes * counts.clamp(min=1)))

    def forward(self, lesson: Lesson, progress: float) -> Tensor:
        """(B,); of a sample without a label anything, as its loss is 0."""
        targets = lesson.batch.targets
        return self.weights[hard_labels(targets)]
