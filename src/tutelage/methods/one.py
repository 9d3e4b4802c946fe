"""Knowledge distillation by on-the-fly native ensemble."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.errors import TutelageError
from tutelage.methods import Positive, method
from tutelage.methods._branches import branched_student
from tutelage.models.tapped import Tapped
from tutelage.sources import OwnOutputs
from tutelage.terms import CrossEntropy, OnRole, SoftTargets, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.ramp import sigmoid_ramp_up
from tutelage.training.run import Run


@method(paper="Lan, Zhu, Gong 2018, arXiv 1806.04606", family="online", evidence="code")
def one(
    run: Run,
    *,
    branches: Annotated[int, Field(ge=2, le=64)] = 3,
    temperature: Positive = 3.0,
    ramp: Annotated[float, Field(ge=0, le=1)] = 80 / 300,
    deploy: Literal["branch", "ensemble"] = "branch",
) -> Tapped:
    """On-the-fly native ensemble (ONE): branches on a shared trunk learn from their own gated ensemble.

        L = sum_i CE(z_i, y) + CE(z_e, y) + w(e) sum_i T^2 KL(q_e || q_i),   z_e = sum_i g_i z_i,   q = softmax(z / T)

    The gates g are computed per sample from the trunk's output (pooling, linear layer, batch normalisation, ReLU,
    softmax). z_e is detached in the divergence only: through CE(z_e, y) the labels train the gate, the trunk and every
    branch. w(e) = exp(-5 (1 - e / (ramp E))^2), then 1. The last stage and the classifier are branched, including their
    normalisation layers; everything before them is shared. Branch 0 starts from the weights of the plain student of the
    same seed; the other branches have new random weights.

    Args:
        run: the run; a teacher is not used.
        branches: the number of branches, m + 1 in the paper.
        temperature: T.
        ramp: the share of the run over which w rises; 80 of 300 epochs in the authors' code, 0 in the paper's equation.
        deploy: "branch" returns branch 0, a network of the student's architecture without a gate; "ensemble" returns
            all branches with the gate (ONE-E).

    Deviations: w changes with every step instead of every epoch. At equal epochs, training costs more than plain
    training, because of the additional last stages.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("the gate of ONE normalises over the batch; use a batch size of 2 or more")
    student, network = branched_student(run, "ONE", branches, combine="gate")
    names = [f"branch{number}" for number in range(branches)]
    whole = Tapped(
        network,
        student.mean.flatten().tolist(),
        student.std.flatten().tolist(),
        roles={name: f"branches.{number}" for number, name in enumerate(names)},
    )
    terms: dict[str, Term | Weighted] = {"ensemble": CrossEntropy()}
    for name in names:
        terms[f"ce {name}"] = OnRole(name, CrossEntropy())
    for name in names:
        terms[f"kd {name}"] = (lambda progress: sigmoid_ramp_up(progress, ramp)) * OnRole(
            name, SoftTargets(temperature)
        )
    deployed = student if deploy == "branch" else whole
    run.fit(Learner(whole, OwnOutputs(whole), terms, deployed=deployed))
    if deploy == "branch":
        network.release()
    return deployed
