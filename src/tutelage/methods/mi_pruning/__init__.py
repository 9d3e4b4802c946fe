"""Pruning of whole units by the mutual information of their feature maps with the class."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.data import Split
from tutelage.data.loader import mix_seeds
from tutelage.errors import TutelageError
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.mi_pruning.clusters import Choice, remaining
from tutelage.methods.mi_pruning.estimators import (
    Bounds,
    check_not_saturated,
    class_entropy,
    largest_energy_distance,
    median_variance,
    mutual_information,
    standardised,
)
from tutelage.methods.mi_pruning.features import unit_outputs
from tutelage.models.surgery import skip
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Soltani, Wu, Ding, Ravier, Tarokh 2020, ICPR, "
    "'On the Information of Feature Maps and Pruning of Deep Neural Networks'",
    family="pruning",
    evidence="abstract",
)
def mi_pruning(
    run: Run,
    *,
    dense: Literal["trained", "teacher"] = "trained",
    stages: Annotated[int, Field(ge=1)] = 1,
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5,
    tolerance: Share = 0.2,
    choose: Choice = "cluster",
    survivor: Literal["first", "last"] = "first",
    score: Literal["information", "energy"] = "information",
    target: Literal["label", "prediction"] = "label",
    bounds: Bounds = "upper",
    variance: NonNegative = 0.0,
    pool: bool = True,
    samples: Annotated[int, Field(ge=2)] = 2000,
    passes: Annotated[int, Field(ge=1)] = 2,
    plain: bool = False,
    retrain_epochs: Annotated[int, Field(ge=0)] | None = None,
    alpha: Share = 0.0,
    temperature: Positive = 4.0,
) -> Tapped:
    """Pruning by information: of the units whose outputs know equally much about the class, one remains.

    A unit is a residual block or a dense layer. Its output X, (n, D) for n samples, is scored by the estimate

        I = H(X) - sum_c n_c / n H(X | Y = c)
        H(X) = D/2 + D/2 ln(2 pi v) - 1/n sum_i ln 1/n sum_j exp(-||x_i - x_j||^2 / (2 v))

    of its mutual information with the class, in nats (``bounds`` for others). The scores are divided into K clusters
    with the least sum of squared distances from the clusters' means, by an exact algorithm. Of each cluster the unit
    closest to the input remains. The others are switched off: a residual block becomes its shortcut, a dense layer
    zeros, and their weights are removed from the network. The smaller network is then trained again.

    K is the smallest number of units, at least the share ``keep``, for which the network loses at most ``tolerance`` of
    its accuracy on the held-out split before it is trained again. The notes of each stage hold the scores by depth, the
    entropy of the classes, the units that remain, and this accuracy for the chosen and for the whole network.

    Args:
        run: the run. The first fit trains the dense network with the run's recipe, each further fit is the training
            after a stage.
        dense: "trained" starts with that first fit, without a teacher; "teacher" starts from the teacher's weights and
            requires the student to be the same network.
        stages: how often units are scored and removed. Stages end early if no unit can be removed.
        keep: the minimum share of a stage's units that remain, rounded up.
        tolerance: the accuracy that may be lost before the training, as a share of the samples; below 1 it needs a
            held-out split.
        choose: "cluster" as above; as controls "rank", the units with the highest scores, and "random".
        survivor: "first" keeps the unit of a cluster that is closest to the input, "last" the deepest [code].
        score: "information", or "energy" for the largest energy distance between the largest class and another.
        target: Y is the label [code], or the network's prediction [abstract].
        bounds: "upper" or "lower" takes one bound for both entropies; "mixed" takes the upper one for H(X) and the
            lower one for H(X | Y) [code], which overestimates.
        variance: v; 0 for half of the median squared distance. [code]: 0.001.
        pool: whether maps are averaged over positions and standardised in each dimension; otherwise they are flattened
            [code].
        samples: n, training samples without augmentation.
        passes: scores are means over this many draws of the samples [code: 20, of 5,184 samples].
        plain: whether other blocks whose output has the shape of their input are units, too; they become the identity.
        retrain_epochs: of each training after a stage; ``None`` for the epochs of the run; 0 for none.
        alpha: weight of the soft targets of the dense network in that training; 0 for the labels alone.
        temperature: T of the soft targets.

    Evidence: the abstract; the rest is from the code of a later method of the same group (PED-Model-Compression, energy
    distance), in which mutual information is one of three scores. That pipeline is marked [code]. The rule for K is
    [inferred]: there it is chosen by hand after looking at this accuracy.

    Deviations: with [code]'s flattened maps and v = 0.001, no two samples are near each other, so that every score is
    the entropy of the classes, for any feature; this is an error here. Therefore maps are pooled and v follows the
    distances, both by default [inferred]. The draws have no augmentation, and no sample twice. Of a dense layer whose
    output is concatenated outside of it, X is that output and not the concatenation. Later layers still read the zeros
    of a dense layer, as in [code]. Clusters are formed over all units, not in each stage of the network. A score by
    Fisher information is not implemented.
    """
    held_out = None
    if tolerance < 1:
        if run.data.validation is None:
            raise TutelageError(
                "mi_pruning chooses the number of units on a held-out split, and there is none; set --validation 0.1, "
                "or tolerance=1 to keep the share `keep`"
            )
        held_out = labelled_samples(run.data.validation)
    student = run.student()
    if not skip.skippable(student.module, run.example(student), plain=plain):
        raise TutelageError(
            f"{type(student.module).__name__} has no residual block or dense layer to switch off; use a network with "
            "some, such as resnet20, or set plain=True to remove layers that keep the shape"
        )
    if dense == "trained":
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    elif not start_from_teacher(run, student, run.teacher()):
        raise another_network(student, run.teacher(), "trained", setting="dense")
    scoring = Scoring(score, target, bounds, variance, pool, samples, passes)
    teacher = Frozen(copy.deepcopy(student)) if alpha else None
    terms = labels_and_soft_targets(alpha, temperature)
    notes: list[dict[str, Any]] = []
    for stage in range(stages):
        units = skip.skippable(student.module, run.example(student), plain=plain)
        if len(units) < 2:
            break
        scores, of_classes = scoring(run, student, units)
        if score == "information" and choose != "random":
            check_not_saturated(scores, of_classes)
        seed = mix_seeds(run.seed, 5, stage)
        whole = _accuracy(run, student, held_out)
        for count in range(math.ceil(keep * len(units) - 1e-9), len(units) + 1):
            positions = remaining(scores, count, choose, last=survivor == "last", seed=seed)
            smaller = _without(run, student, [name for i, name in enumerate(units) if i not in positions])
            pruned = _accuracy(run, smaller, held_out)
            if pruned >= whole - tolerance - 1e-6:
                break
        notes.append(
            {
                "scores": dict(zip(units, scores, strict=True)),
                "class_entropy": of_classes,
                "remaining": [units[position] for position in positions],
                **({} if held_out is None else {"accuracy_before": whole, "accuracy_pruned": pruned}),
            }
        )
        run.note(stages=notes)
        if len(positions) == len(units):
            break
        student = smaller
        if retrain_epochs != 0:
            run.fit(Learner(student, teacher, terms), epochs=retrain_epochs or run.epochs)
    return student


@dataclass(frozen=True)
class Scoring:
    """The scores of units; the attributes are parameters of the method."""

    score: str
    target: str
    bounds: Bounds
    variance: float
    pool: bool
    samples: int
    passes: int

    def __call__(self, run: Run, model: Tapped, units: Sequence[str]) -> tuple[list[float], float]:
        """The mean score of each unit over the draws, and that of the entropy of the classes."""
        labelled = labelled_samples(run.data.train)
        totals, of_classes = dict.fromkeys(units, 0.0), 0.0
        for number in range(self.passes):
            generator = torch.Generator().manual_seed(mix_seeds(run.seed, 4, number))
            part = labelled.subset(torch.randperm(len(labelled), generator=generator)[: self.samples])
            labels = run.predict(model, part).argmax(1) if self.target == "prediction" else part.labels
            of_classes += class_entropy(labels) / self.passes
            outputs = unit_outputs(model, units, part, pooled=self.pool)
            for unit, output in outputs.items():
                totals[unit] += self.of(output, labels) / self.passes
        return list(totals.values()), of_classes

    def of(self, output: Tensor, labels: Tensor) -> float:
        """The score of one output, (n, D)."""
        x = standardised(output) if self.pool else output.double()
        if self.score == "energy":
            return largest_energy_distance(x, labels) / math.sqrt(x.shape[1])
        return mutual_information(x, labels, self.variance or median_variance(x), self.bounds)


def _without(run: Run, student: Tapped, units: Sequence[str]) -> Tapped:
    """A copy of the student without these units."""
    smaller = copy.deepcopy(student)
    skip.apply(smaller.module, run.example(student), units=units)
    return smaller.rewrapped()


def _accuracy(run: Run, model: Tapped, split: Split | None) -> float:
    """The accuracy on a split; 0 without one."""
    return 0.0 if split is None else float(accuracy(run.predict(model, split), split.labels))
