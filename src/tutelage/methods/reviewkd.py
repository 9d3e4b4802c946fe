"""Distillation by knowledge review."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import KnowledgeReview
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Chen, Liu, Zhao, Jia 2021, arXiv 2104.09044", family="representation", task=None, evidence="abstract")
def reviewkd(
    run: Run,
    *,
    weight: NonNegative = 1.0,
    warmup: Share = 20 / 240,
    width: Annotated[int, Field(ge=1)] | None = None,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Knowledge review (ReviewKD): each stage of the student learns from all stages of the teacher above it.

        L = CE(z, y) + min(1, e / warmup) weight sum over stages of HCL(F_j, T_j)

    F_j is the student's stage j, reduced by a 1x1 convolution and fused with F_{j+1} by a learned attention (ABF). HCL
    compares maps at their own size and pooled to 4 x 4, 2 x 2 and 1 x 1. The fusions are discarded.

    Args:
        run: the run.
        weight: the weight; the authors have 0.6 to 8 for different pairs of networks [from memory]. 1 is our choice.
        warmup: the share e of the run in which the weight grows linearly from 0; the authors have 20 epochs.
        width: channels of the fused maps; by default those of the student's widest stage.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: maps after the activation, without the pooled embedding as an additional stage; sizes pooled to follow
    from the map's height. The weight grows with every step instead of every epoch.
    """
    student, teacher = run.student(), run.teacher()
    loss = KnowledgeReview(run.paired_stages(student, teacher), width)

    def growth(progress: float) -> float:
        return weight * (min(1.0, progress / warmup) if warmup else 1.0)

    run.fit(
        Learner(student, run.frozen(teacher), run.label_terms(kd_alpha, kd_temperature) | {"review": growth * loss})
    )
    return student
