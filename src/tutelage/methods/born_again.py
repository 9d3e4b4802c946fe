"""Born-again networks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tutelage.methods import Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Furlanello, Lipton, Tschannen, Itti, Anandkumar 2018, arXiv 1805.04770",
    family="baseline",
    task=None,
    evidence="abstract",
)
def born_again(
    run: Run,
    *,
    generations: Annotated[int, Field(ge=1)] = 2,
    alpha: Share = 0.5,
    temperature: Positive = 1.0,
) -> Tapped:
    """Born-again networks (BAN): a network teaches the next network of the same kind, several times.

        L_0 = CE(z, y)
        L_k = (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v_{k-1} / T) || softmax(z / T)),  k = 1 .. generations

    v_{k-1} are the logits of generation k - 1. Each generation has new initial weights; the last one is the student.
    The run needs no teacher, and uses none.

    Args:
        run: the run. Each generation takes its epochs, so that the whole takes generations + 1 times as long as
            ``plain``; the epochs of all generations are in the counts of forward passes.
        generations: the number of networks after the first.
        alpha: the weight of the soft targets. The paper adds both losses with equal weights [from memory].
        temperature: T, 1 in the paper [from memory].

    Deviations: the ensemble of all generations, which the paper also evaluates, is not formed.
    """
    student = run.student(0)
    run.fit(Learner(student, None, run.label_terms()))
    for generation in range(1, generations + 1):
        teacher, student = student, run.student(generation)
        run.fit(Learner(student, run.frozen(teacher), run.label_terms(alpha, temperature)))
    return student
