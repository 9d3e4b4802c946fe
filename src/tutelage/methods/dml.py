"""Deep mutual learning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.methods import NonNegative, Positive, method
from tutelage.models.tapped import Tapped
from tutelage.sources import Peers
from tutelage.terms import CrossEntropy, Mimicry, SoftTargets
from tutelage.training.learner import Learner
from tutelage.training.run import Run
from tutelage.training.updates import in_turn, together


@method(paper="Zhang, Xiang, Hospedales, Lu 2018, arXiv 1706.00384", family="online", evidence="code")
def dml(
    run: Run,
    *,
    peers: Annotated[int, Field(ge=2)] = 2,
    temperature: Positive = 1.0,
    weight: NonNegative = 1.0,
    update: Literal["sequential", "synchronous"] = "sequential",
    target: Literal["each", "ensemble"] = "each",
) -> Tapped:
    """Mutual learning: untrained students train together, each a target for the others, and there is no teacher.

    L_k = CE(z_k, y) + weight * 1/(K-1) * sum over l != k of T^2 KL(p_l || p_k): the peer is the target, and is
    detached. All nets are in train mode, on the same batch, with different first weights and their own optimisers.
    Net 1 starts exactly as the plain student of the same seed does, and it is the one returned.

    Args:
        run: what to train; a teacher, if it has one, is not used.
        peers: K, the number of nets.
        temperature: T; the paper has none, which is 1.
        weight: of the mimicry; the paper's is 1.
        update: "sequential" is the paper's algorithm 1 [from memory]: net k is updated, run again, and the next net
            sees what it gives now. "synchronous": one forward each, then all updates, as most ports do. A net that is
            run again leaves its batch-normalisation statistics as they were, so that each batch counts once.
        target: "each" peer by itself, or the "ensemble" of the peers' mean probabilities (the paper's DML_e).

    Deviations: none known. The official code adds the divergences without the 1/(K-1) and feeds each net another batch.
    """
    nets = [run.student(number) for number in range(peers)]
    mimicry = Mimicry if target == "each" else SoftTargets
    learners = [
        Learner(
            net,
            Peers(*(other for other in nets if other is not net)),
            {"ce": CrossEntropy(), "mimicry": weight * mimicry(temperature)},
            name=f"net{number}",
        )
        for number, net in enumerate(nets, 1)
    ]
    run.fit(*learners, update=in_turn if update == "sequential" else together)
    return nets[0]
