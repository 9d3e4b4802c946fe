"""A gift from knowledge distillation: the flow of solution procedure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.methods import Positive, Share, default_by, method
from tutelage.models.tapped import Tapped
from tutelage.terms import Flow
from tutelage.terms.flow import Reduction
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Yim, Joo, Bae, Kim, CVPR 2017", family="representation", task=None, evidence="abstract")
def fsp(
    run: Run,
    *,
    init_share: Annotated[float, Field(gt=0, lt=1)] = 0.15,
    reduction: Reduction = "relative",
    init_lr: Positive = default_by("reduction", relative=0.1, mean=0.1, paper=0.01),
    adapter: Literal["auto", "never"] = "auto",
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Flow: the student first learns how the channels of one stage's input and output go together in the teacher.

    Stage 1, without labels: mean over the batch of sum over flows i of ||G_i^T - G_i^S||_F^2, with G the inner products
    of the channels of two layers, 1/(h w) sum_{s,t} F1_{m,s,t} F2_{n,s,t}; the larger map is max-pooled to the smaller.
    The flows lie between stem, stage 1, stage 2, ... of both networks, paired from the last one backwards. What lies
    above the last stage is not touched.
    Stage 2, with a fresh optimiser: L = CE(z, y), and nothing of the teacher.

    Args:
        run: what to train. Both stages together take the run's epochs (each one at least).
        init_share: the share of the epochs that stage 1 takes; ours, about the benchmarks' 30 of 270.
        reduction: "relative" divides ||G_i^T - G_i^S||^2 by the batch's mean of ||G_i^T||^2 and takes the mean over
            flows, so that one learning rate fits every network; "paper" is the sum above; "mean" the benchmarks' mean
            over the entries of G.
        init_lr: stage 1's learning rate as a part of the recipe's. Its default depends on the reduction: 0.01 for
            "paper", the paper's ratio [from memory], and 0.1 for the others, which is ours. The loss grows with the
            fourth power of the activations, so that a student whose activations start far from the teacher's would run
            away: gradients of stage 1 are clipped at a length of 1.
        adapter: where a layer's channels differ from the teacher's, "auto" trains a 1x1 convolution in between and
            throws it away after stage 1; "never" refuses, as the paper's method has to.
        kd_alpha: above 0, Hinton's term joins stage 2: (1 - kd_alpha) CE + kd_alpha T^2 KL in the place of CE.
        kd_temperature: its T.

    Deviations: the relative loss, the clipping and the adapter, as said. The paper's schedules in steps are [from
    memory] and not taken over.
    """
    student, teacher = run.student(), run.teacher()
    flow = Flow(run.paired_maps(student, teacher), reduction, adapter)
    taught = Learner(student, run.frozen(teacher), run.label_terms(kd_alpha, kd_temperature))
    run.check(taught)
    init_epochs = max(1, round(init_share * run.epochs))
    run.fit(
        Learner(student, run.frozen(teacher), {"flow": flow}),
        epochs=init_epochs,
        lr=init_lr * run.recipe.lr,
        clip=min(1.0, run.recipe.clip or 1.0),
    )
    run.fit(taught, epochs=max(1, run.epochs - init_epochs))
    return student
