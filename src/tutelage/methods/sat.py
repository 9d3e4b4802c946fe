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
    """Sinkhorn adversarial training (SAT): match the distribution of the logits of attacked and clean images.

        L = CE(z', y) + weight S(z, z'),   S(a, b) = W(a, b) - W(a, a) / 2 - W(b, b) / 2

    z are the logits of the batch and z' those of the attacked batch, each from its own forward pass. W is the cost
    (squared Euclidean) of an entropic transport plan between two batches with uniform weights, from at most 50 Sinkhorn
    iterations, fewer once the change is below 0.1, so that S is not exactly symmetric. Gradients flow into z' and z;
    there is no label loss on clean images. The attack is projected gradient descent (PGD) on CE from a random start,
    against the network in train mode: each step updates the running statistics of batch normalisation. A sample without
    a label is not attacked and counts only in S.

    Args:
        run: the run; a teacher is not used.
        radius: the maximum change of each value, in the pixels' range [0, 1]; the normalisation is inside the network.
        step_size, steps: of the attack; each step costs a forward and a backward pass.
        regularisation: sigma of the plan, in squared logits. If squared distances are far above it, the iterations do
            not converge and S approaches a comparison of each sample with itself (see
            ``terms.sinkhorn.transport_plan``).
        weight: the weight of S. With 0 this is the adversarial training of Madry et al. (arXiv 1706.06083), without a
            pass on the clean batch.
        clamp: whether attacked images stay in [0, 1]; in the authors' code they may leave it during training.

    Deviations: attacked images are clamped to [0, 1]. The clean pass comes before the attack and the adversarial pass
    instead of after them; the gradients are the same, only the running statistics of batch normalisation differ. The
    paper trains WRN-28-10; its code does not state the number of epochs, which the recipe sets here. With several
    processes, each compares its own share of the batch.
    """
    student = run.student()
    attacked = AdversarialSamples(student, radius, step_size, steps, clamp=clamp)
    terms: dict[str, Term | Weighted] = {"ce": CrossEntropy().on(attacked)}
    if weight:
        terms["sinkhorn"] = weight * SinkhornDivergence(regularisation).between(None, attacked)
    run.fit(Learner(student, None, terms))
    return student
