"""Contrastive representation distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.terms import InBatchContrast, MemoryContrast, Term
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Tian, Krishnan, Isola 2020, arXiv 1910.10699", family="representation", task=None, evidence="abstract")
def crd(
    run: Run,
    *,
    negatives: Literal["memory", "batch"] = "memory",
    count: Annotated[int, Field(ge=1)] = 1024,
    weight: NonNegative = 0.8,
    width: Annotated[int, Field(ge=1)] = 128,
    temperature: Positive = 0.07,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    kd_alpha: Share = 0.0,
    kd_temperature: Positive = 4.0,
) -> Tapped:
    """Contrastive representation distillation (CRD): tell the teacher's embedding of a sample from those of others.

        L = CE(z, y) + weight (NCE(s, T) + NCE(t, S))
        NCE(v, M) = -log h(v, M_i) / (h(v, M_i) + K/N) - sum_k log (K/N) / (h(v, M_k) + K/N)
        h(v, m) = exp(v . m / tau) / Z

    s and t are trained linear projections of the embeddings of student and teacher, scaled to length 1; S and T are
    memories of the last projections of all N training samples; i is the sample itself, and k runs over K random samples
    of other classes. The projections and the memories are discarded.

    Args:
        run: the run.
        negatives: "memory", as above and in the paper; or "batch": the other samples of the batch are the negatives of
            a softmax in both directions (InfoNCE), without a memory.
        count: K. The authors have 16384; that many cost more than a small student.
        weight: the weight, 0.8 in the authors' scripts.
        width: of the projections, 128 in the authors' code.
        temperature: tau, 0.07 in the authors' code.
        momentum: of the memories, 0.5 in the authors' code.
        kd_alpha: combine with Hinton's loss: (1 - kd_alpha) CE + kd_alpha T^2 KL replaces CE.
        kd_temperature: T of Hinton's loss.

    Deviations: the default of K. Samples without a label, or with labels that are
    no classes, have all others as negatives. With several processes, each has
    memories of its own, of which it updates its share.
    """
    if negatives == "batch" and run.recipe.batch_size < 2:
        raise TutelageError("CRD contrasts the samples of a batch; use a batch size of 2 or more, or negatives=memory")
    student, train = run.student(), run.data.train
    loss: Term = InBatchContrast(width, temperature)
    if negatives == "memory":
        labels = train.targets.classes(train.labels)  # none of other targets than classes
        loss = MemoryContrast(train.index, labels, count, width, temperature, momentum)
    terms = run.label_terms(kd_alpha, kd_temperature) | {"crd": weight * loss}
    run.fit(Learner(student, run.frozen(run.teacher()), terms))
    return student
