"""Pruning of redundant units in annealed steps, with repair by distillation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import labelled_samples
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods._widths import Resource, cost_of
from tutelage.methods.lre_amc.compensation import compensate, second_moments
from tutelage.methods.lre_amc.redundancy import eliminate
from tutelage.models.groups import MIN_UNITS, drop, group_of, prunable
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training.learner import Learner
from tutelage.training.loop import Record
from tutelage.training.run import Run

IMAGES = 256  # for which activations are collected, or as many as the layer has units


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
    floor: Annotated[int, Field(ge=MIN_UNITS)] = MIN_UNITS,
    resource: Resource = "flops",
    target: Annotated[float, Field(gt=0, lt=1)] | None = None,
) -> Tapped:
    """LRE-AMC pruning: remove units that others of their layer predict, and repair the network by distillation.

    Linear redundancy elimination (LRE): each unit's activations Z_j, as the next layer receives them, are regressed on
    those of the other units of the layer and a constant. The unit with the smallest residual ||Z_j - Z A_j|| is
    removed, and the next layer's weights compensate for it:

        W <- W + W_j A_j'

    with the constant's coefficient added to the bias. If the regression is exact, so is the smaller network. In a
    convolution all kernel positions are treated alike.
    Annealed model contraction (AMC): the layers in turn lose 1 - keep of their units. If accuracy on the held-out split
    is then more than ``tolerance`` below that of the dense network, the dense network is distilled into the smaller one
    until it is not:

        L = (1 - w) T^2 KL(softmax(v / T) || softmax(z / T)) + w CE(z, y)

    If ``repair_epochs`` do not suffice, the last good network is restored and the layer is not pruned further. Pruning
    ends when no layer is left. The layers are convolutions of one group and linear layers whose units reach the next
    layers through separate channels. Layers coupled with others by a sum, such as the last of a residual block, are not
    pruned.

    Args:
        run: the run; it needs a held-out split. The first fit trains the dense network with the run's recipe, each
            further fit is a repair by Adam with learning rate 1e-3, weight decay 1e-4 and gradient clipping at 5
            [official code].
        dense: "trained" starts with that first fit, without a teacher; "teacher" starts from the teacher's weights and
            requires the student to be the same network.
        keep: gamma, the share of a layer's units that remain after a step [official code]; at least one is removed
            [inferred].
        tolerance: the accuracy that may be lost, as a share of the samples [official code].
        repair_epochs: the maximum of one repair: 50 in the official code; ``None`` for the epochs of the run; 0 for no
            repair.
        label_weight: w [official code]; with 1 a repair uses the labels alone.
        temperature: T [official code].
        ridge: lambda of the regressions, as a share of the units' mean square [inferred].
        floor: the minimum number of units of a layer [inferred].
        resource: what ``target`` limits: "flops" of one input, or "parameters".
        target: pruning also ends at this cost, as a share of that of the student before; ``None`` for no such end. It
            may end earlier, at a larger cost. Not in the paper.

    Deviations: A is the solution of the regression, not learned by Adam, and its update after each unit is exact; that
    of the authors' code is not. Units are ranked again after each removal; the code ranks once. The constant is omitted
    if the next layer has zero padding, where it would be wrong at the border, or no bias. A repair uses the run's
    augmentation and batches at a constant learning rate; the code has no augmentation and halves the rate on plateaus.
    The held-out split comes from the training split; the code takes it from the test split. Not implemented: the code's
    gradient sensitivity, its other orders of layers, its stop at an adjustment larger than the weights, and its final
    training on labels.
    """
    if run.data.validation is None:
        raise TutelageError("lre_amc needs a held-out split to know when to stop; set --validation 0.1")
    held_out = labelled_samples(run.data.validation)
    student = run.student()
    open_layers = prunable(student.module, next(_images(run, student, 2)))
    if not open_layers:
        raise TutelageError(
            f"{type(student.module).__name__} has no layer whose units can be removed; use a network with convolutions "
            "or linear layers that are not coupled by a sum"
        )
    if dense == "trained":
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    elif not start_from_teacher(run, student, run.teacher()):
        raise another_network(student, run.teacher(), "trained", setting="dense")
    teacher = Frozen(copy.deepcopy(student))
    max_epochs = run.epochs if repair_epochs is None else repair_epochs
    goal = _accuracy(run, student, held_out) - tolerance - 1e-6

    def reached(history: Sequence[Record]) -> bool:
        return bool(history[-1]["learners"]["student"]["validation_accuracy"] >= goal)

    def repaired(smaller: Tapped) -> bool:
        if _accuracy(run, smaller, held_out) >= goal:
            return True
        if max_epochs == 0:
            return False
        learner = Learner(smaller, teacher, labels_and_soft_targets(1 - label_weight, temperature))
        fitted = run.fit(
            learner,
            until=reached,
            epochs=max_epochs,
            optimizer="Adam",
            lr=1e-3,
            weight_decay=1e-4,
            schedule="constant",
            warmup=0.0,
            clip=5.0,
        )
        return reached(fitted.history)

    def cost(network: Tapped) -> int:
        return cost_of(resource, network.module, next(_images(run, network, 1)))

    limit = 0.0 if target is None else target * cost(student)
    while open_layers and cost(student) > limit:
        for layer in list(open_layers):
            if cost(student) <= limit:
                break
            smaller = _pruned(run, student, layer, keep, floor, ridge)
            if smaller is not None and repaired(smaller):
                student = smaller
            else:
                open_layers.remove(layer)
    return student


def _pruned(run: Run, student: Tapped, layer: str, keep: float, floor: int, ridge: float) -> Tapped | None:
    """A copy of the student without the most redundant units of a layer; ``None`` if none may be removed."""
    smaller = copy.deepcopy(student)
    group = group_of(smaller.module, layer, next(_images(run, student, 1)))
    if group is None or group.units <= floor:
        return None
    count = min(max(1, int((1 - keep) * group.units + 1e-9)), group.units - floor)
    gram = second_moments(smaller.module, group, _images(run, student, max(group.units, IMAGES)))
    scale = float(gram.diagonal()[: group.units].mean())
    elimination = eliminate(gram, count, ridge=max(ridge * scale, 1e-30), units=group.units)
    compensate(smaller.module, group, elimination)
    drop(smaller.module, group, elimination.removed)
    return smaller


def _images(run: Run, model: Tapped, count: int) -> Iterator[Tensor]:
    """The same ``count`` training images at each call, normalised and without augmentation, in batches."""
    train = run.data.train
    indices = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))[:count]
    for batch in evaluation_batches(train.subset(indices), batch_size=64, workers=0):
        yield (batch.inputs.to(model.mean.device) - model.mean) / model.std


def _accuracy(run: Run, model: Tapped, split: Split) -> float:
    return float(accuracy(run.predict(model, split), split.labels))
