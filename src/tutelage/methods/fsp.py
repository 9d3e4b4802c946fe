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
    """Flow of solution procedure (FSP): first match the inner products of the channels of consecutive stages.

    Stage 1, without labels, matches the FSP matrices G_i of layers i and i + 1:

        L = mean over the batch of sum_i ||G_i^T - G_i^S||_F^2
        G_mn = 1/(h w) sum_{s,t} F1_{m,s,t} F2_{n,s,t}

    F1 and F2 are the maps of the two layers; the larger one is max-pooled to the size of the smaller. The layers are
    stem, stage 1, stage 2, ... of both networks, paired from the last one backwards. Layers above the last stage do not
    change. Stage 2 trains with a new optimiser on L = CE(z, y), without the teacher.

    Args:
        run: the run. Both stages together take its epochs (at least one each).
        init_share: the share of the epochs that stage 1 takes; our choice, about the 30 of 270 epochs of benchmarks.
        reduction: "relative" divides ||G_i^T - G_i^S||^2 by the batch's mean of ||G_i^T||^2 and takes the mean over i,
            so that one learning rate suits every network. "paper" is the sum above. "mean", as in benchmarks, takes the
            mean over the entries of G.
        init_lr: the learning rate of stage 1 divided by that of the recipe. Its default depends on the reduction: 0.01
            for "paper", the paper's ratio [from memory], and 0.1 otherwise, our choice. The loss grows with the fourth
            power of the activations and would diverge for a student whose activations start far from the teacher's;
            therefore gradients of stage 1 are clipped at a norm of 1.
        adapter: if a layer's number of channels differs from the teacher's, "auto" trains a 1x1 convolution in between,
            which is discarded after stage 1; "never" raises an error, since the paper's method requires equal numbers.
        kd_alpha: combine stage 2 with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the relative loss, the clipping and the adapter. The paper's schedules, in steps [from memory], are not
    used.
    """
    student, teacher = run.student(), run.teacher()
    flow = Flow(run.paired_maps(student, teacher), reduction, adapter)
    second_stage = Learner(student, run.frozen(teacher), run.label_terms(kd_alpha, kd_temperature))
    run.check(second_stage)
    init_epochs = max(1, round(init_share * run.epochs))
    run.fit(
        Learner(student, run.frozen(teacher), {"flow": flow}),
        epochs=init_epochs,
        lr=init_lr * run.recipe.lr,
        clip=min(1.0, run.recipe.clip or 1.0),
    )
    run.fit(second_stage, epochs=max(1, run.epochs - init_epochs))
    return student
