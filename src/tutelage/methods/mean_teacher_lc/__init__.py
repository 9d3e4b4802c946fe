"""Local clustering with mean teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.data.batch import UNLABELLED
from tutelage.data.orders import LabelledFirst
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.mean_teacher_lc.local_clustering import LocalClustering
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, SecondView
from tutelage.terms import CrossEntropy, SoftmaxMSE, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.ramp import rise
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
    """Few labels: an average of the student over time teaches it, and late in training neighbours are pulled together.

    L = CE(z_l, y) + w_c r(e) MSE(p, p') + w_lc r(e - e0) [LC(f_l, f_u) + LC(f_u, f_u)]. Each batch has samples with a
    label (l) and without (u; the label -1, see ``--noise missing:RATE``). CE is the mean over l; MSE the mean over all
    samples and classes between the probabilities of the student and of the average, which sees another view of each
    sample; LC as in ``local_clustering``, of what the student's classifier is given. r rises as exp(-5 (1 - t)^2) to
    1; LC counts from e0 on. After each step average <- decay average + (1 - decay) student, from weights of the
    average's own. With w_lc = 0 this is Mean Teacher. Defaults are those of the authors' code for CIFAR-10.

    Args:
        run: what to train; a teacher, if it has one, is not used. An epoch is one pass over the samples without a
            label. Where all have one, each counts as both.
        labelled: the share of a batch that has labels; at least one sample.
        consistency: w_c. On small data 100 can be far too strong: try 10 first.
        consistency_ramp: the share of the run over which it rises.
        decay: of the average.
        buffers: "own", as the authors' code: the average runs in train mode and gathers its own statistics; or it
            runs in eval mode with the student's, averaged or copied.
        clustering: w_lc.
        clustering_start: e0, as a share of the run.
        clustering_ramp: the share of the run over which it rises.
        threshold: tau, in the unit of the features squared; the authors' code has 40 or 50 for its own network.
            ``None`` takes a quantile of each batch.
        quantile: which, among the distances between samples without a label; 0.1 is ours [inferred].
        deploy: "average", which the authors' code evaluates, or "student".

    Deviations: tau is a quantile unless given. Weights rise a step at a time and not an epoch. A batch in which nobody
    has a neighbour gives 0, and NaN in the authors' code. Their network (13 layers, weight norm), their augmentation
    and their schedule (constant for 80 % of the run, then linearly to 0) are the run's to choose.
    """
    student = run.student()
    average = EMA(student, decay, buffers, warm_start=False, start=run.student(1))
    size, labels = min(run.recipe.batch_size, len(run.data.train)), run.data.train.labels
    first = max(1, round(labelled * size))
    some_have_none = labels.ndim == 1 and bool((labels == UNLABELLED).any())
    terms: dict[str, Term | Weighted] = {
        "ce": (size / first if some_have_none else 1.0) * CrossEntropy(),  # the learner divides by the whole batch
        "consistency": (lambda progress: consistency * rise(progress, consistency_ramp)) * SoftmaxMSE(),
    }
    if clustering:
        terms["clustering"] = LocalClustering(threshold, quantile) * (
            lambda progress: clustering * rise_from(clustering_start, progress, clustering_ramp)
        )
    deployed = average.model if deploy == "average" else student
    run.fit(Learner(student, SecondView(average), terms, deployed=deployed), order=LabelledFirst(first))
    return deployed


def rise_from(start: float, progress: float, ramp: float) -> float:
    """r when this share of the run is done: 0 until ``start``, and it rises from there."""
    return rise(progress - start, ramp) if progress > start else 0.0
