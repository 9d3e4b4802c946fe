"""Batch normalisation of the logits, for class imbalance."""

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
from tutelage.methods.final_bn.surgery.final_bn import apply as add_final_bn
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import ForwardPass, Learner
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
    """Final batch normalisation (class imbalance): normalise the logits, so that no class wins by a constant offset.

        L = CE(z', y),   z'_k = gamma_k (z_k - mu_k) / sqrt(var_k + eps) + beta_k

    Mean and variance are those of the batch in train mode and running statistics in eval mode. The method is meant for
    data in which at most one class is frequent. Accuracy and loss say little under class imbalance: see ``macro_f1``
    and ``per_class_f1``, on balanced test data. The confidence decreases, which does not mean calibration.
    ``tutelage.methods.final_bn.surgery.final_bn.fold`` returns the same function as a network without the layer; use
    that as a teacher, since unit variance gives the logits, and so a temperature, another meaning.

    Args:
        run: the run; a teacher is not used.
        position: of the layer: on the logits, or on the inputs of the classifier. The paper's "just before the output
            layer" can mean either; the follow-up paper's "before the softmax output layer" means the logits.
        momentum: the weight of a batch in the running statistics: 0.1 is the usual default; 0.01 is that of fastai's
            ``bn_final``, which the authors may have used [from memory] and which needs several hundred steps.
        affine: whether gamma and beta exist and are trained [inferred].
        weighted: weight each sample by N / (C n_y), the inverse frequency of its class. The paper studies this with and
            without the layer [from memory]; here it is with the layer.

    Deviations: the paper fine-tunes networks pre-trained on ImageNet; here any student is trained, a pre-trained one if
    the run says so. Weighted losses are averaged over the batch and not divided by the sum of the weights.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("final batch normalisation normalises over the batch; use a batch size of 2 or more")
    student = run.student()
    example = run.example(student)
    add_final_bn(student.module, example, position=position, momentum=momentum, affine=int(affine))
    weight = InverseFrequency(run.data.train, run.data.num_classes) if weighted else None
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, sample_weight=weight))
    return student


class InverseFrequency(nn.Module):
    """The sample weight N / (C n_y), with n_y the training samples of the label's class and N all labelled samples.

    Its mean over the training split is 1. Soft labels count as their largest class.
    """

    weights: Tensor

    def __init__(self, train: Split, num_classes: int) -> None:
        super().__init__()
        counts = torch.tensor(class_counts(train.labels, num_classes))
        self.register_buffer("weights", counts.sum() / (num_classes * counts.clamp(min=1)))

    def forward(self, forward_pass: ForwardPass, progress: float) -> Tensor:
        """(B,); arbitrary for a sample without a label, whose loss is 0."""
        targets = forward_pass.batch.targets
        return self.weights[hard_labels(targets)]
