"""Regularisation by silencing the most active units."""

from __future__ import annotations

from functools import partial
from typing import Literal

from tutelage.methods import Share, method
from tutelage.methods.maxdropout.layer import MaxDropout, after_stages, in_place_of_dropout
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Santos, Colombo, Roder, Papa 2020, arXiv 2007.13723", family="regularisation", evidence="code")
def maxdropout(
    run: Run, *, rate: Share = 0.3, random_rate: bool = False, where: Literal["stages", "dropout"] = "stages"
) -> Tapped:
    """MaxDropout: in training the most active units of a layer are set to 0.

    y = x where (x - min x) <= (1 - r) (max x - min x), else 0, with the extremes of the whole tensor: batch, channels
    and space. What survives is not scaled up, and no gradient flows through the extremes. L = CE(z, y).
    The layers are there while it trains alone: the student that is given back is the plain network. Its attribute
    ``dropped`` says what share of the units each layer has set to 0 (since the run was last taken up), by role or name.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        rate: r, a threshold on values and no share of units: at 0.3 well under 1 % of a map goes. The larger batch and
            map are, the less it is, so a rate of dropout cannot be taken over.
        random_rate: draw the rate of each pass from U(0, r), as the paper's algorithm does [from memory]; the authors'
            code has r itself.
        where: "stages": after each stage, as the authors' ResNet-18; "dropout": in place of every ``nn.Dropout``, as
            their WRN-28-10 in its blocks.

    Deviations: in eval mode nothing is dropped; in the authors' networks the layer stays active, by a mistake, and so
    their figures were made. Some stages end in signed values (our WRN's, and a batch norm whose ReLU is a function
    call), where 0 is not the least activity and at a high rate hardly anything positive survives; name layers behind an
    activation then, by ``roles``. Each of several processes has extremes of its own.
    """
    student = run.trace(run.student())
    placed = after_stages if where == "stages" else in_place_of_dropout
    with placed(student, partial(MaxDropout, rate, random_rate=random_rate)) as layers:
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    student.dropped = {name: layer.share for name, layer in layers.items()}  # type: ignore[assignment]
    return student
