"""Regularisation by setting the most active units to 0."""

from __future__ import annotations

from functools import partial
from typing import Literal

from tutelage.methods import Share, method
from tutelage.methods.maxdropout.layer import MaxDropout, after_stages, replace_dropout
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Santos, Colombo, Roder, Papa 2020, arXiv 2007.13723", family="regularisation", evidence="code")
def maxdropout(
    run: Run, *, rate: Share = 0.3, random_rate: bool = False, where: Literal["stages", "dropout"] = "stages"
) -> Tapped:
    """MaxDropout: set the most active units of a layer to 0 during training.

        y = x if (x - min x) <= (1 - r) (max x - min x), else 0;   L = CE(z, y)

    Minimum and maximum are over the whole tensor: batch, channels and space. The remaining units are not scaled up, and
    no gradient flows through the extremes. The layers exist only during training: the method returns the network
    without them. Its attribute ``dropped`` holds the share of units that each layer set to 0 (since the run was last
    resumed), by role or layer name.

    Args:
        run: the run; a teacher is not used.
        rate: r, a threshold on values, not a share of units: with 0.3, well under 1 % of a map is set to 0. The share
            decreases with the sizes of batch and map, so that a rate of dropout cannot be reused.
        random_rate: draw the rate of each pass from U(0, r), as in the paper's algorithm [from memory]; the authors'
            code uses r.
        where: "stages" puts a layer after each stage, as in the authors' ResNet-18; "dropout" replaces each
            ``nn.Dropout``, as in the blocks of their WRN-28-10.

    Deviations: nothing is dropped in eval mode. In the authors' networks the layer stays active by mistake, also for
    their published results. Stages that end in signed values (those of our WRN, or of a batch norm whose ReLU is a
    function call) have activities below 0, and at a high rate hardly any positive value survives; name layers behind an
    activation there, by ``roles``. With several processes, each uses the extremes of its own share of the batch.
    """
    student = run.trace(run.student())
    insert = after_stages if where == "stages" else replace_dropout
    with insert(student, partial(MaxDropout, rate, random_rate=random_rate)) as layers:
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    student.dropped = {name: layer.share for name, layer in layers.items()}  # type: ignore[assignment]
    return student
