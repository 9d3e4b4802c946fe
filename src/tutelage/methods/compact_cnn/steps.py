"""The parts of the method beside its fits: targets, the dense network, and the extraction."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.compact_cnn.resources import Resources, norms_of
from tutelage.models.groups import select
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import logits_of
from tutelage.models.tapped import Tapped
from tutelage.text import value_text
from tutelage.training.learner import Learner
from tutelage.training.run import Run

IMAGES = 8  # on which removing units is tried


def targets(
    resources: Resources, target: float, block_targets: Sequence[float], floor: int, network: str
) -> tuple[int, list[int]]:
    """The largest cost of the network, and that of each block if there are targets for blocks.

    Args:
        resources: of the network.
        target: a share of the network's cost.
        block_targets: shares of the blocks' costs, in place of ``target``; or empty.
        floor: the smallest number of units of a group.
        network: the name of the network, for errors.

    Raises:
        TutelageError: there is nothing to compress, the target is too small, or there are more or fewer shares.
    """
    if not resources.groups:
        raise TutelageError(
            f"{network} has no channels that a batch normalisation scales and that can be removed one by one; use a "
            "network with a batch normalisation after each convolution"
        )
    of_blocks = []
    if block_targets:
        check_blocks("block_targets", block_targets, resources)
        costs = resources.by_block(resources.units)
        of_blocks = [math.floor(share * cost) for share, cost in zip(block_targets, costs, strict=True)]
    whole = resources.total(resources.units)
    total = resources.constant + sum(of_blocks) if of_blocks else math.floor(target * whole)
    smallest = resources.total([min(units, floor) for units in resources.units])
    if total < smallest:
        raise TutelageError(
            f"a target of {total / whole:.3g} of the {resources.resource} of {network} cannot be reached: the smallest "
            f"share, with {floor} units in each layer that can be compressed, is {smallest / whole:.3g}; choose a "
            "larger target"
        )
    return total, of_blocks


def check_blocks(name: str, values: Sequence[float], resources: Resources) -> None:
    """Refuse a setting that has not one value for each block.

    Raises:
        TutelageError: with the names of the blocks.
    """
    if len(values) != len(resources.blocks):
        raise TutelageError(
            f"{name} must have one number for each of the {len(resources.blocks)} blocks, "
            f"{', '.join(resources.blocks)}; got {len(values)}: {value_text(list(values))}"
        )


def dense_network(run: Run, student: Tapped, start: str) -> Tapped:
    """Train the student on the label loss, or load the teacher's weights; returns the frozen dense network.

    Raises:
        TutelageError: the student is another network than the teacher.
    """
    if start == "trained":
        run.fit(Learner(student, None, run.label_terms()))
        return copy.deepcopy(student)
    if not start_from_teacher(run, student, run.teacher()):
        raise another_network(student, run.teacher(), "trained")
    return run.teacher()


def norm_parameters(model: Tapped) -> frozenset[str]:
    """The names of the parameters of batch normalisations."""
    norms = ((name, module) for name, module in model.module.named_modules() if isinstance(module, _BatchNorm))
    return frozenset(f"{name}.{key}" for name, module in norms for key, _ in module.named_parameters())


def example_images(run: Run, model: Tapped) -> Tensor:
    """A few training images, as the network takes them."""
    part = run.data.train.subset(torch.arange(min(IMAGES, len(run.data.train))))
    return model.normalised(next(evaluation_batches(part, workers=0)).inputs.to(model.mean.device))


@torch.no_grad()
def extraction_difference(model: Tapped, resources: Resources, alive: Sequence[Tensor], images: Tensor) -> float:
    """The largest difference of a logit by the removal of the units that are not alive, (units,) bool by group."""
    images = images.to(model.mean.device)
    smaller = copy.deepcopy(model.module)
    select(smaller, resources.groups, alive)
    with eval_mode(model.module), eval_mode(smaller):
        expected, actual = (logits_of(network, network(images)) for network in (model.module, smaller))
    return float((expected - actual).abs().max())


@torch.no_grad()
def extracted(
    run: Run,
    student: Tapped,
    resources: Resources,
    alive: Sequence[Tensor],
    remaining: Sequence[Tensor],
    *,
    scratch: bool,
) -> Tapped:
    """The compact network.

    Args:
        run: the run.
        student: the network after the structure was learned; without ``scratch`` it becomes smaller.
        resources: of the network.
        alive: the units that were not switched off, (units,) bool by group.
        remaining: the units of the compact network. The scale of one that was switched off becomes the smallest one of
            the others, since it would have no gradient.
        scratch: whether the weights are those of a new network.
    """
    if scratch:
        student = run.student(1)
    else:
        for group, before, after in zip(resources.groups, alive, remaining, strict=True):
            for norm, columns in norms_of(student.module, group):
                on = norm.weight[columns[before].flatten().to(norm.weight.device)]
                norm.weight[columns[after & ~before].flatten().to(norm.weight.device)] = on.abs().min()
    select(student.module, resources.groups, remaining)
    return student
