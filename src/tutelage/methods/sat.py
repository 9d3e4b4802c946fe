"""Sinkhorn adversarial training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.attacks import AdversarialSamples
from tutelage.methods import NonNegative, Positive, method
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, SinkhornDivergence, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Bouniot, Audigier, Loesch 2020, arXiv 2102.03156", family="adversarial robustness", evidence="code")
def sat(
    run: Run,
    *,
    radius: Positive = 8 / 255,
    step_size: Positive = 2 / 255,
    steps: Annotated[int, Field(ge=1)] = 7,
    regularisation: Positive = 1.0,
    weight: NonNegative = 1.0,
    clamp: bool = True,
) -> Tapped:
    """Sinkhorn adversarial training: logits of attacked images are distributed as those of clean ones.

    L = CE(z', y) + weight * S(z', z), with z the logits of the batch and z' those of the attacked one, in a pass each.
    S(a, b) = W(a, b) - W(a, a) / 2 - W(b, b) / 2, where W is the transport cost, squared Euclidean, of an entropic plan
    between two batches of equal weights: at most 50 Sinkhorn iterations, ended by a change below 0.1. The gradient
    flows into z' and z; clean images have no label loss.
    The attack is projected gradient descent on CE, from a random start, against the network as it trains, batch
    normalisation included: its running averages move with every step of it. A sample without a label is not attacked,
    and counts in S alone.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        radius: how far each value may be moved, of the pixels' range [0, 1]; the normalisation is inside the network.
        step_size, steps: of the attack while training; each step costs a forward and a backward pass.
        regularisation: sigma of the plan, in squared logits. Where squared distances are far above it the iterations do
            not suffice, and S comes near to pairing each sample with its own (``terms.sinkhorn.transport_plan``).
        weight: of S. With 0 this is the adversarial training of Madry et al. (arXiv 1706.06083), and the clean batch is
            not run.
        clamp: whether attacked images stay in [0, 1]. The authors' code lets them leave it while it trains.

    Deviations: attacked images are kept to [0, 1]. The clean pass comes before the attack and the adversarial pass and
    not after them; gradients are those of the same two passes, and only the running averages of batch normalisation end
    elsewhere. The paper trains WRN-28-10 for a number of epochs that its code does not tell; here the recipe says it.
    Several processes compare their own shares of the batch.
    """
    student = run.student()
    attacked = AdversarialSamples(student, radius, step_size, steps, clamp=clamp)
    terms: dict[str, Term | Weighted] = {"ce": CrossEntropy().on(attacked)}
    if weight:
        terms["sinkhorn"] = weight * SinkhornDivergence(regularisation).between(attacked)
    run.fit(Learner(student, None, terms))
    return student
