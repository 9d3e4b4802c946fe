"""Compression by non-linear redundancy, in annealed steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.data import Split
from tutelage.data.loader import in_order
from tutelage.errors import TutelageError
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import labelled
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import start_from_teacher
from tutelage.methods.lre_amc.groups import FEWEST, drop, group_of, prunable, second_moments, take_over
from tutelage.methods.lre_amc.redundancy import eliminate
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

IMAGES = 256  # that activations are collected on, or as many as the layer has units


@method(paper="Shah, Olivier, Raj 2020, arXiv 2005.14070", family="pruning", evidence="code")
def lre_amc(
    run: Run,
    *,
    dense: Literal["trained", "teacher"] = "trained",
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    tolerance: Share = 0.05,
    repair_epochs: Annotated[int, Field(ge=0)] | None = None,
    label_weight: Share = 1e-4,
    temperature: Positive = 1.0,
    ridge: Positive = 1e-3,
    floor: Annotated[int, Field(ge=FEWEST)] = FEWEST,
) -> Tapped:
    """Pruning: units that the others of their layer predict go, and the dense network repairs what that breaks.

    Linear redundancy elimination (LRE): of the activations Z (n, d) of a layer's units, as the next layer is given
    them, with a constant column, each is regressed on the others. The unit of the smallest residual ||Z_j - Z A_j|| is
    taken out, and the next layer takes over what it did: W <- W + W_j A_j', its bias the constant's share. Where the
    regression is exact, so is the smaller network. In a convolution all kernel positions are treated alike.
    Annealed model contraction (AMC): layers in turn lose 1 - keep of their units. Where accuracy on the held-out part
    is then more than ``tolerance`` below the dense network's, the dense network is distilled into the smaller one,

    L = (1 - w) T^2 KL(softmax(v / T) || softmax(z / T)) + w CE(z, y),

    until it is not, at the first such epoch. If it still is after ``repair_epochs``, the last good network is taken up
    again and the layer is left alone from then on. It ends when no layer is left.
    The layers: convolutions of one group and linear layers, whose units reach the next ones through channels of their
    own. Layers that a sum couples with others, as the last one of a residual block, are left alone.

    Args:
        run: what to train; a part must be held out. The first fit trains the dense network with the run's recipe, each
            further one is a repair: Adam, learning rate 1e-3, weight decay 1e-4, gradient clip 5 [official code].
        dense: "trained" starts with that first fit, as the student is trained plainly; a teacher, if the run has one,
            is not used. "teacher" starts from the teacher's weights, and the student must be the same network.
        keep: gamma, the share of a layer's units that one step leaves [official code]; at least one goes [inferred].
        tolerance: how much accuracy may be lost, as a share of the samples [official code].
        repair_epochs: the most that one repair takes, 50 in the official code; as many as the run has unless given. 0
            is without repair.
        label_weight: w [official code]; with 1 a repair is by the labels alone.
        temperature: T [official code].
        ridge: lambda of the regressions, as a share of the units' mean square [inferred].
        floor: how many units a layer keeps at least [inferred].

    Deviations: A is the regression's solution, not learnt by Adam, and its update after each unit is the exact one,
    which the authors' code is not. Units are ranked again after each that goes; the code ranks once. The constant is
    left out where the next layer has zero padding, which it would be wrong for at the border, or no bias. The repair
    sees the training part as the run augments it, in the run's batches, at a constant learning rate; the code has no
    augmentation and halves the rate on plateaus. The held-out part is of the training part; the code takes it from the
    test part. Without the code's gradient sensitivity, its other orders, its stop where an adjustment is larger than
    the weights, and its final training on labels.
    """
    if run.data.validation is None:
        raise TutelageError("lre_amc asks a held-out part when to stop; hold one out with --validation 0.1")
    held_out = labelled(run.data.validation)
    student = run.student()
    open_layers = prunable(student.module, next(_shown(run, student, 2)))
    if not open_layers:
        raise TutelageError(
            f"{type(student.module).__name__} has no layer whose units can be taken out; give a network with "
            "convolutions or linear layers that no sum couples"
        )
    if dense == "trained":
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    elif not start_from_teacher(run, student, run.teacher()):
        raise TutelageError(
            f"dense=teacher starts from the teacher's weights, and the student, {type(student.module).__name__}, is "
            f"another network than the teacher, {type(run.teacher().module).__name__}; give the same, or dense=trained"
        )
    teacher = Frozen(copy.deepcopy(student))
    most = run.epochs if repair_epochs is None else repair_epochs
    goal = _accuracy(run, student, held_out) - tolerance - 1e-6

    def reached(record: Record) -> bool:
        return bool(record["learners"]["student"]["validation_accuracy"] >= goal)

    def repaired(smaller: Tapped) -> bool:
        if _accuracy(run, smaller, held_out) >= goal:
            return True
        if most == 0:
            return False
        learner = Learner(smaller, teacher, labels_and_soft_targets(1 - label_weight, temperature))
        fitted = run.fit(
            learner,
            until=reached,
            epochs=most,
            optimizer="Adam",
            lr=1e-3,
            weight_decay=1e-4,
            schedule="constant",
            warmup=0.0,
            clip=5.0,
        )
        return reached(fitted.history[-1])

    while open_layers:
        for layer in list(open_layers):
            smaller = _shrunk(run, student, layer, keep, floor, ridge)
            if smaller is not None and repaired(smaller):
                student = smaller
            else:
                open_layers.remove(layer)
    return student


def _shrunk(run: Run, student: Tapped, layer: str, keep: float, floor: int, ridge: float) -> Tapped | None:
    """A copy of the student without the most redundant units of a layer; ``None`` where none may go."""
    smaller = copy.deepcopy(student)
    group = group_of(smaller.module, layer, next(_shown(run, student, 1)))
    if group is None or group.units <= floor:
        return None
    count = min(max(1, int((1 - keep) * group.units + 1e-9)), group.units - floor)
    gram = second_moments(smaller.module, group, _shown(run, student, max(group.units, IMAGES)))
    scale = float(gram.diagonal()[: group.units].mean())
    elimination = eliminate(gram, count, ridge=max(ridge * scale, 1e-30), units=group.units)
    take_over(smaller.module, group, elimination)
    drop(smaller.module, group, elimination.removed)
    return smaller


def _shown(run: Run, model: Tapped, count: int) -> Iterator[Tensor]:
    """So many training images as the bare network takes them, in batches; always the same, without augmentation."""
    train = run.data.train
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))[:count]
    for batch in in_order(train.subset(drawn), batch_size=64, workers=0):
        yield (batch.inputs.to(model.mean.device) - model.mean) / model.std


def _accuracy(run: Run, model: Tapped, part: Split) -> float:
    return float(accuracy(run.predict(model, part), part.labels))
