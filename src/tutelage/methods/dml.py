"""Deep mutual learning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.methods import NonNegative, Positive, method
from tutelage.models.tapped import Tapped
from tutelage.sources import Peers
from tutelage.terms import Mimicry, Term
from tutelage.training.learner import Learner
from tutelage.training.run import Run
from tutelage.training.updates import in_turn, together


@method(paper="Zhang, Xiang, Hospedales, Lu 2018, arXiv 1706.00384", family="online", task=None, evidence="code")
def dml(
    run: Run,
    *,
    peers: Annotated[int, Field(ge=2)] = 2,
    temperature: Positive = 1.0,
    weight: NonNegative = 1.0,
    update: Literal["sequential", "synchronous"] = "sequential",
    target: Literal["each", "ensemble"] = "each",
) -> Tapped:
    """Deep mutual learning (DML): several students train together and are each other's teachers.

        L_k = CE(z_k, y) + weight 1/(K-1) sum_{l != k} T^2 KL(p_l || p_k)

    The peer p_l is the target and is detached. All networks train on the same batch in train mode, with different
    initial weights and separate optimisers. Network 1 starts from the weights of the plain student of the same seed and
    is the one returned. In other tasks with soft targets, CE and T^2 KL are the task's label loss and its loss on soft
    targets, for example those of each pixel.

    Args:
        run: the run; a teacher is not used.
        peers: K, the number of networks.
        temperature: T; the paper has none, which is T = 1.
        weight: the weight of the mimicry loss; 1 in the paper.
        update: "sequential" is the paper's algorithm 1 [from memory]: after network k is updated it is run again, so
            that the next network matches its new outputs. "synchronous" runs all networks once and then updates all, as
            most implementations do. Running a network again does not update its batch-normalisation statistics, so that
            each batch counts once.
        target: "each" peer separately, or the "ensemble" of the peers' mean probabilities (the paper's DML_e).

    Deviations: none known. The official code sums the divergences without the factor 1/(K-1) and gives each network
    another batch.
    """
    nets = [run.student(number) for number in range(peers)]

    def mimicry() -> Term:
        soft_targets = run.label_task.soft_targets(temperature)
        return Mimicry(temperature, soft_targets) if target == "each" else soft_targets

    learners = [
        Learner(
            net,
            Peers(*(other for other in nets if other is not net)),
            {"ce": run.label_task.label_loss(), "mimicry": weight * mimicry()},
            name=f"net{number}",
        )
        for number, net in enumerate(nets, 1)
    ]
    run.fit(*learners, update=in_turn if update == "sequential" else together)
    return nets[0]
