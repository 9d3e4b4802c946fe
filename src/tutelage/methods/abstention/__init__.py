"""Knowledge distillation with a precise teacher and prediction with abstention."""

from __future__ import annotations

import warnings
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from tutelage.errors import TutelageWarning
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.abstention.gambler import Gambler, SoftBet, check_payoff
from tutelage.models.ensemble import Ensemble
from tutelage.models.surgery.abstain import apply
from tutelage.models.tapped import Tapped
from tutelage.terms import AdjustedSoftTargets, CrossEntropy, Term, Weighted
from tutelage.terms.knowledge_adjustment import Adjustment, label_smooth_replacement, probability_shift
from tutelage.training.learner import Learner
from tutelage.training.run import Run

ADJUSTMENTS = MappingProxyType({"shift": probability_shift, "replacement": label_smooth_replacement})
MARGIN = 0.25  # a mean of 0.69 against 1 / 2.2 gave 65 % abstention on digits: it is to be warned of


@method(paper="Xu, Pu, Zhao 2020, doi 10.1109/ICPR48806.2021.9412696", family="response", evidence="abstract")
def abstention(
    run: Run,
    *,
    variant: Literal["two_term", "soft_bet"] = "two_term",
    payoff: Annotated[float, Field(gt=1)] = 2.2,
    adjustment: Literal["shift", "replacement"] = "shift",
    temperature: Positive = 4.0,
    weight: NonNegative = 1.0,
    warm_up: Share = 1 / 3,
) -> Tapped:
    """Precise teacher: its wrong answers are set right, and the student has an output more, to abstain by.

    The student has m + 1 outputs, p = softmax(s_1 .. s_m, s_a), and p_a says how little its answer is to be trusted;
    the answer is the largest of the m. A sets the teacher's probabilities right where they err on the label.
    "two_term": L = T^2 KL(A(softmax(v / T), y) || softmax(s_1..m / T)) + weight * l, l = -log(p_y + p_a / o).
    "soft_bet": L = -sum over classes j of A(softmax(v), y)_j log(p_j + p_a / o). There is no label loss beside it.

    Args:
        run: what to train.
        variant: the abstract does not say how the two ideas are joined; both forms are readings of it [inferred].
            "soft_bet" is the literal one. Where the teacher's largest probability is not well above 1 / o its classes
            learn nothing, of which there is a warning; those of the other one do, and so it is the default.
        payoff: o, with 1 < o < m; the smaller, the more is abstained. 2.2 is of Deep Gamblers' code; "soft_bet" wants
            more under a teacher that is in doubt, for instance 6. Choose it by held-out samples.
        adjustment: A, where the teacher is wrong. "shift": its largest probability and the label's change places;
            "replacement": 0.9 for the label and the rest evenly. Which of them the paper has is not known [inferred].
        temperature: T of "two_term"; "soft_bet" has 1.
        weight: of l in "two_term"; with 0 the adjusted teacher teaches alone, and the output more learns nothing.
        warm_up: the share of the run in which the output more is left out: l is CE(s_1..m, y), and the soft bet is
            KL(A(softmax(v), y) || softmax(s_1..m)). Deep Gamblers' code has a third on CIFAR-10 for o < 6.1, else 0.
            Without it a network that knows nothing yet may learn to abstain from everything, and stay so; see
            docs/results/abstention.md.

    Deviations: the output more is a layer beside the classifier, which is the same function as one of m + 1 rows.
    """
    check_payoff(payoff, run.data.num_classes)
    adjust = ADJUSTMENTS[adjustment]
    student = run.student()
    example = run.example(student)
    apply(student.module, example)
    student = student.rewrapped()
    terms: dict[str, Term | Weighted]
    if variant == "two_term":
        terms = {"kd": AdjustedSoftTargets(adjust, temperature)}
        early, late = weight * CrossEntropy(), weight * Gambler(payoff)
    else:
        _warn_of_collapse(run, adjust, payoff)
        terms = {}
        early, late = Weighted(AdjustedSoftTargets(adjust, 1.0)), Weighted(SoftBet(payoff, adjust))
    if warm_up:
        terms["warm-up"] = (lambda progress: float(progress < warm_up)) * early
    terms["gambler"] = (lambda progress: float(progress >= warm_up)) * late
    run.fit(Learner(student, run.frozen(*run.teachers()), terms))
    return student


def _warn_of_collapse(run: Run, adjust: Adjustment, payoff: float) -> None:
    """Say so where a soft bet would hardly be made: its optimum bets nothing where A(q) is nowhere above 1 / o."""
    train = run.data.train
    logits = run.predict(Tapped(Ensemble(run.teachers())), train)
    surest = float(adjust(logits.softmax(1), train.labels).amax(1).mean())
    if surest < 1 / payoff + MARGIN:
        warnings.warn(
            f"the teacher's largest probability on the training part is {surest:.2f} on average, not well above 1 / "
            f"payoff = {1 / payoff:.2f}, so that the soft bet may abstain from everything; raise the payoff, which is "
            f"{payoff:g}, or take variant=two_term",
            TutelageWarning,
            stacklevel=2,
        )
