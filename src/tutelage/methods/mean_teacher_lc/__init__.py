"""Local clustering with mean teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods._parts import labelled_parts
from tutelage.methods.mean_teacher_lc.local_clustering import LocalClustering
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, SecondView
from tutelage.terms import CrossEntropy, SoftmaxMSE, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.ramp import sigmoid_ramp_up
from tutelage.training.run import Run


@method(
    paper="Chen, Dutton, Ramachandra, Wu, Vatsavai 2020, arXiv 2004.09665",
    family="semi-supervised",
    evidence="code",
)
def mean_teacher_lc(
    run: Run,
    *,
    labelled: Share = 32 / 160,
    consistency: Positive = 100.0,
    consistency_ramp: Share = 5 / 1000,
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    buffers: Literal["own", "average", "copy"] = "own",
    clustering: NonNegative = 10.0,
    clustering_start: Share = 600 / 1000,
    clustering_ramp: Share = 100 / 1000,
    threshold: Positive | None = None,
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.1,
    deploy: Literal["average", "student"] = "average",
) -> Tapped:
    """Mean Teacher with local clustering (few labels): the student's moving average teaches it.

        L = CE(z_l, y) + w_c r(e) MSE(p, p') + w_lc r(e - e0) [LC(f_l, f_u) + LC(f_u, f_u)]

    Each batch has samples with a label (l) and without (u; label -1, see ``--noise missing:RATE``). Student and average
    run on the two parts separately, so that batch normalisation in train mode does not mix them. CE is the mean over l.
    MSE is the mean over all samples and classes of the squared difference of the probabilities of the student and of
    its average, which runs on another view of each sample. LC, ``local_clustering``, pulls neighbouring embeddings f
    together, from epoch e0 on. r rises to 1 as exp(-5 (1 - t)^2). After each step, average <- decay average +
    (1 - decay) student; the average starts from its own random weights. With w_lc = 0 this is Mean Teacher. The
    defaults are those of the authors' code for CIFAR-10.

    Args:
        run: the run; a teacher is not used. An epoch is one pass over the samples without a label. If all samples have
            labels, each counts as both, and a batch is one part.
        labelled: the share of a batch that has labels; at least one sample of each process. Batch normalisation of
            vectors needs two.
        consistency: w_c. For small data 100 can be far too large: try 10 first.
        consistency_ramp: the share of the run over which w_c r rises.
        decay: of the average.
        buffers: "own", as in the authors' code: the average runs in train mode and gathers its own statistics. With
            "average" or "copy" it runs in eval mode with the student's statistics, averaged or copied.
        clustering: w_lc.
        clustering_start: e0, as a share of the run.
        clustering_ramp: the share of the run over which w_lc r rises.
        threshold: tau of LC, in squared units of the features; the authors' code has 40 or 50 for its network. ``None``
            uses a quantile in each batch.
        quantile: the quantile of the distances between samples without a label; 0.1 is our choice [inferred].
        deploy: the network to return: "average", which the authors' code evaluates, or "student".

    Deviations: tau is a quantile by default. Weights change with every step instead of every epoch. LC of a batch
    without neighbours is 0, not NaN as in the authors' code. Their network (13 layers, weight normalisation), their
    augmentation and their schedule (constant for 80 % of the run, then linear to 0) are not built in. With several
    processes, LC compares the samples of one process.
    """
    student = run.student()
    average = EMA(student, decay, buffers, warm_start=False, start=run.student(1))
    parts = labelled_parts(run, labelled)

    def rising(progress: float) -> float:
        return consistency * sigmoid_ramp_up(progress, consistency_ramp)

    terms: dict[str, Term | Weighted] = {
        "ce": CrossEntropy().on(parts.labelled),
        "consistency": rising * ((1 - parts.share) * SoftmaxMSE().on(parts.unlabelled)),
    }
    if parts.labelled:
        terms["consistency_labelled"] = rising * (parts.share * SoftmaxMSE().on(parts.labelled))
    if clustering:
        terms["clustering"] = LocalClustering(threshold, quantile).between(parts.unlabelled, parts.labelled) * (
            lambda progress: clustering * rise_from(clustering_start, progress, clustering_ramp)
        )
    deployed = average.model if deploy == "average" else student
    run.fit(Learner(student, SecondView(average), terms, deployed=deployed), order=parts.order)
    return deployed


def rise_from(start: float, progress: float, ramp: float) -> float:
    """r at this progress of the run: 0 up to ``start``, then rising."""
    return sigmoid_ramp_up(progress - start, ramp) if progress > start else 0.0
