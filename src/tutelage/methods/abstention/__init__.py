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
from tutelage.models.surgery import abstain
from tutelage.models.tapped import Tapped
from tutelage.terms import AdjustedSoftTargets, CrossEntropy, Term, Weighted
from tutelage.terms.knowledge_adjustment import Adjustment, label_smooth_replacement, probability_shift
from tutelage.training.learner import Learner
from tutelage.training.run import Run

ADJUSTMENTS = MappingProxyType({"shift": probability_shift, "replacement": label_smooth_replacement})
MARGIN = 0.25  # a mean of 0.69 against 1 / 2.2 gave 65 % abstention on digits, which deserves a warning


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
    """Prediction with abstention: correct the teacher's errors, and give the student an output for abstaining.

    The student has m + 1 outputs, p = softmax(s_1 .. s_m, s_a). It predicts the largest of the m classes, and the
    abstention probability p_a says how unreliable that prediction is. A corrects the teacher's probabilities where its
    prediction contradicts the label.

        "two_term": L = T^2 KL(A(softmax(v / T), y) || softmax(s_1..m / T)) + weight l,   l = -log(p_y + p_a / o)
        "soft_bet": L = -sum_j A(softmax(v), y)_j log(p_j + p_a / o),   without a label loss

    Args:
        run: the run.
        variant: the abstract does not say how its two ideas are combined; both variants are readings of it [inferred].
            "soft_bet" is the literal one. There, classes learn nothing where the teacher's largest probability is not
            well above 1 / o, which causes a warning; with "two_term" they do, therefore it is the default.
        payoff: o, with 1 < o < m; a smaller payoff leads to more abstention. 2.2 is that of Deep Gamblers' code;
            "soft_bet" needs a larger one under an uncertain teacher, for example 6. Choose it on held-out samples.
        adjustment: A, for the teacher's wrong predictions. "shift" swaps its largest probability with the label's;
            "replacement" sets 0.9 for the label and distributes the rest evenly. Which one the paper has is not known
            [inferred].
        temperature: T of "two_term"; "soft_bet" has T = 1.
        weight: the weight of l in "two_term"; with 0 the abstention output is not trained.
        warm_up: the share of the run without the abstention output: l is CE(s_1..m, y), and the soft bet is
            KL(A(softmax(v), y) || softmax(s_1..m)). Deep Gamblers' code has a third on CIFAR-10 for o < 6.1, otherwise
            0. Without a warm-up, an untrained network may learn to abstain from everything and not recover; see
            docs/results/abstention.md.

    Deviations: the abstention output is a separate layer next to the classifier, which is the same function as a
    classifier with m + 1 rows.
    """
    check_payoff(payoff, run.data.num_classes)
    adjust = ADJUSTMENTS[adjustment]
    student = run.student()
    example = run.example(student)
    abstain.apply(student.module, example)
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
    """Warn if the soft bet may abstain from everything: it is optimal to abstain where A(q) is nowhere above 1 / o."""
    train = run.data.train
    logits = run.predict(Tapped(Ensemble(run.teachers())), train)
    confidence = float(adjust(logits.softmax(1), train.labels).amax(1).mean())
    if confidence < 1 / payoff + MARGIN:
        warnings.warn(
            f"the teacher's largest probability on the training split is {confidence:.2f} on average, not well above "
            f"1 / payoff = {1 / payoff:.2f}, so that the soft bet may abstain from everything; raise the payoff "
            f"({payoff:g}), or use variant=two_term",
            TutelageWarning,
            stacklevel=2,
        )
