"""Networks whose paths are switched on or off for each input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.data.batch import hard_labels
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Share, method
from tutelage.methods.dmnn.gates import Gates
from tutelage.methods.dmnn.terms import CategoryLoss, RateLoss
from tutelage.methods.dmnn.usage import gate_usage
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, Term, Weighted
from tutelage.text import value_text
from tutelage.training.learner import Learner
from tutelage.training.run import Run
from tutelage.training.updates import Step, together

LAST_TEMPERATURE = 0.5


@method(paper="Su, Wu, Chen, Liang, Hu 2020, arXiv 1902.10949", family="dynamic networks", evidence="abstract")
def dmnn(
    run: Run,
    *,
    target: Annotated[float, Field(gt=0, le=1)] = 0.7,
    rate_weight: NonNegative = 10.0,
    category_weight: NonNegative = 0.3,
    groups: str = "",
    warm_up: Share = 0.1,
    rate_of: Literal["executed", "sampled"] = "executed",
) -> Tapped:
    """Dynamic multi-path network (DMNN): compute only those paths of a block that the input needs.

        L = CE(z, y) + rate_weight (r - t)^2 + category_weight mean_l CE(A_l h_l, category of y)
        x_l+1 = ReLU(s(x_l) + sum_n g_ln F_ln(x_l)),   g_l = 1 if G h_l + b > 0, else 0
        h_l = tanh(U u_l + V h_l-1),   u_l = ReLU(BN(W mean of x_l)),   h_0 = 0

    r is the share of the paths' operations that is executed, sum c g / sum c, averaged over the batch, and t the
    target. In training the logits of the gates have logistic noise, and the gradient is that of
    sigmoid((a + noise) / tau), with tau from 1 to 0.5. All gates are 1 in the first steps. The linear layers A_l exist
    only during training. The student is a network of the family ``dmnn``, such as ``dmnn20``. After training it skips
    the paths whose gate is 0: the cost in ``result.json`` is the mean over test samples. t counts the paths only, so
    the share of all operations is larger. The notes hold the executed share on the held-out split, how often each
    gate is open, the mean variance of a gate, and the mutual information of the gates' pattern with the class. The
    last is estimated from counts and thus biased upwards; beside it is its mean for shuffled classes.

    Args:
        run: the run; a teacher is not used. Its student has the roles ``gates``, ``gate_logits`` and ``states``.
        target: t.
        rate_weight: the weight of the rate. The gradient of the square vanishes at t, so that the share comes near it
            slowly.
        category_weight: the weight of the categories.
        groups: the category of each class, as numbers from 0 with commas, for example "0,0,1,1" for four classes in two
            categories; without it each class is a category of its own.
        warm_up: the share of the steps in which all gates are 1 and the rate has no weight.
        rate_of: "executed" takes r of the gates without noise, which are those of the trained network; "sampled" takes
            r of the gates with noise, whose mean can differ from the executed share. Both are of batches in training,
            whose normalisation differs from that of the trained network.

    Evidence: the paper could not be read, only its abstract and a review of its full text by others. That there are
    paths, gates, a previous state, categories and a target rate, and the number of paths, are from these. The layers of
    the controller, the gradient of the gates, the square, the weights and the schedule are [inferred].

    Deviations: networks for small images; 32 numbers of a controller's state become half of the first inner width, at
    least 8. Inner widths are rounded to integers instead of multiples of 8, which would change the number of
    parameters at these widths. Batch normalisation in the paths has the statistics of the samples whose gate is 1; with
    several processes, those of each process's own samples. r of the gates without noise is ours.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("the controllers of DMNN normalise over the batch; use a batch size of 2 or more")
    student = run.student()
    gates = [module for module in student.module.modules() if isinstance(module, Gates)]
    if len(gates) != 1 or not {"gates", "gate_logits", "states"} <= student.manual_roles:
        raise TutelageError(
            f"DMNN trains gates, and {type(student.module).__name__} has none; choose a gated network, for example "
            "dmnn20"
        )
    costs: tuple[int, ...] = student.module.path_flops  # type: ignore[assignment]
    blocks = len(student.module.controllers)  # type: ignore[arg-type]
    rate = RateLoss(costs, target, sampled=rate_of == "sampled")
    terms: dict[str, Term | Weighted] = {
        "ce": CrossEntropy(),
        "rate": (lambda progress: rate_weight if progress >= warm_up else 0.0) * rate,
    }
    if category_weight:
        categories = _categories(groups, run.data.num_classes)
        terms["category"] = category_weight * CategoryLoss(blocks, categories)
    run.fit(Learner(student, None, terms), update=GateSchedule(gates[0], warm_up))
    held_out = run.data.validation
    if held_out is not None:
        run.note(gates=gate_usage(run.predict(student, held_out, ("gates",)), hard_labels(held_out.labels), costs))
    return student


class GateSchedule:
    """The rule ``together``, with the gates' temperature from 1 to 0.5 and all gates open in the first steps.

    It has no state: the progress of the fit determines both.

    Args:
        gates: of the student.
        warm_up: the share of the steps with open gates.
    """

    def __init__(self, gates: Gates, warm_up: float) -> None:
        self.gates, self.warm_up = gates, warm_up

    def __call__(self, step: Step) -> None:
        """Do the step."""
        self.gates.temperature.fill_(1 - (1 - LAST_TEMPERATURE) * step.progress)
        self.gates.open.fill_(step.progress < self.warm_up)
        together(step)


def _categories(groups: str, classes: int) -> list[int]:
    """The category of each class.

    Raises:
        TutelageError: another number of classes, or a category that is no number from 0.
    """
    if not groups:
        return list(range(classes))
    numbers = [int(text) if text.isascii() and text.isdigit() else -1 for text in groups.replace(" ", "").split(",")]
    if len(numbers) != classes or min(numbers) < 0 or max(numbers) >= classes:
        raise TutelageError(
            f"groups must be {classes} numbers from 0 to {classes - 1} with commas, one for each class, got "
            f"{value_text(groups)}"
        )
    return numbers
