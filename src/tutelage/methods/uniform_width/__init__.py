"""Equally narrower layers: the baseline of pruning."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from tutelage.data.loader import evaluation_batches
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods._widths import Resource, narrow_equally
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv 1608.08710", family="pruning", evidence="abstract")
def uniform_width(
    run: Run,
    *,
    resource: Resource = "flops",
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    start: Literal["teacher", "initial"] = "initial",
    alpha: Share = 0.9,
    temperature: Positive = 4.0,
) -> Tapped:
    """Uniform width: each layer of the student keeps the same share of its units, and learns from the teacher.

        L = (1 - alpha) label loss + alpha T^2 KL(softmax(v / T) || softmax(z / T))

    It is the baseline for methods that choose which units to remove. The share is the largest one at which the cost is
    at most ``target``. Units that a sum or a depthwise convolution couples are one unit; those that cannot be removed
    one by one remain.

    Args:
        run: the run.
        resource: what is limited: "flops" of one input, or "parameters".
        target: the largest cost, as a share of that of the student before.
        start: "initial" trains new weights; "teacher" keeps the units of the teacher whose weights have the largest L1
            norm, as the filter pruning of Li et al. does, and requires the student to be the same network.
        alpha: the weight of the soft targets; with 0 there is no distillation.
        temperature: T.

    Evidence: the ranking by the L1 norm is that of Li et al. [memory]; the rest is the usual baseline.

    Deviations: Li et al. choose the layers by their sensitivity and do not distill; here all layers are pruned by the
    same share at once. For coupled layers the norms are added.
    """
    student, teacher = run.student(), run.teacher()
    if start == "teacher" and not start_from_teacher(run, student, teacher):
        raise another_network(student, teacher, "initial")
    part = run.data.train.subset(torch.arange(2))
    images = student.normalised(next(evaluation_batches(part, workers=0)).inputs.to(student.mean.device))
    candidates, masks = narrow_equally(student.module, images, resource, target)
    run.note(widths=[int(mask.sum()) for mask in masks], widths_before=[group.units for group in candidates])
    student = student.rewrapped()
    run.fit(Learner(student, run.frozen(teacher), run.label_terms(alpha, temperature)))
    return student
