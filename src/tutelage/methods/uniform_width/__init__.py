"""Equally narrower layers: the baseline of pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.data.loader import evaluation_batches
from tutelage.errors import TutelageError
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.models.groups import MIN_UNITS, Group, groups, select
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv 1608.08710", family="pruning", evidence="abstract")
def uniform_width(
    run: Run,
    *,
    resource: Literal["flops", "parameters"] = "flops",
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    start: Literal["teacher", "initial"] = "initial",
    alpha: Share = 0.9,
    temperature: Positive = 4.0,
) -> Tapped:
    """Uniform width: each layer of the student keeps the same share of its units, and learns from the teacher.

        L = (1 - alpha) label loss + alpha T^2 KL(softmax(v / T) || softmax(z / T))

    It is the baseline for methods that choose which units to remove. The share is the largest one at which the cost is
    at most ``target``. Units that a sum or a depthwise convolution couples are one unit; those that cannot be removed
    one by one remain.

    Args:
        run: the run.
        resource: what is limited: "flops" of one input, or "parameters".
        target: the largest cost, as a share of that of the student before.
        start: "initial" trains new weights; "teacher" keeps the units of the teacher whose weights have the largest L1
            norm, as the filter pruning of Li et al. does, and requires the student to be the same network.
        alpha: the weight of the soft targets; with 0 there is no distillation.
        temperature: T.

    Evidence: the ranking by the L1 norm is that of Li et al. [memory]; the rest is the usual baseline.

    Deviations: Li et al. choose the layers by their sensitivity and do not distill; here all layers are pruned by the
    same share at once. For coupled layers the norms are added.
    """
    student, teacher = run.student(), run.teacher()
    if start == "teacher" and not start_from_teacher(run, student, teacher):
        raise another_network(student, teacher, "initial")
    part = run.data.train.subset(torch.arange(2))
    images = student.normalised(next(evaluation_batches(part, workers=0)).inputs.to(student.mean.device))
    candidates = groups(student.module, images)
    if not candidates:
        raise TutelageError(
            f"{type(student.module).__name__} has no units that can be removed: the next layers do not read them "
            "separately, or another operation needs their number; use another network"
        )
    cost = flops if resource == "flops" else _parameters
    masks = _largest_at_most(student.module, candidates, images[:1], cost, target)
    select(student.module, candidates, masks)
    run.note(widths=[int(mask.sum()) for mask in masks], widths_before=[group.units for group in candidates])
    student = student.rewrapped()
    run.fit(Learner(student, run.frozen(teacher), run.label_terms(alpha, temperature)))
    return student


def _parameters(network: nn.Module, _example: Tensor) -> int:
    return parameters(network)


def _largest_at_most(
    network: nn.Module,
    candidates: list[Group],
    example: Tensor,
    cost_of: Callable[[nn.Module, Tensor], int],
    target: float,
) -> list[Tensor]:
    """The units that remain, (units,) bool for each group, at the largest share whose cost is at most the target.

    Raises:
        TutelageError: even the smallest share costs more.
    """
    norms = [_norms(network, group) for group in candidates]
    whole = cost_of(network, example)

    def masks(share: float) -> list[Tensor]:
        remaining = []
        for values in norms:
            mask = torch.zeros(len(values), dtype=torch.bool)
            mask[values.argsort(descending=True, stable=True)[: max(MIN_UNITS, round(share * len(values)))]] = True
            remaining.append(mask)
        return remaining

    def cost(share: float) -> float:
        smaller = copy.deepcopy(network)
        select(smaller, candidates, masks(share))
        return cost_of(smaller, example) / whole

    low, high = 0.0, 1.0
    if cost(low) > target:
        raise TutelageError(
            f"{type(network).__name__} cannot be reduced to {target:g} of its cost by removing units: the smallest "
            f"share is {cost(low):.3g}; choose a larger target"
        )
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return masks(low)


def _norms(network: nn.Module, group: Group) -> Tensor:
    """The L1 norm of each unit's weights, over all layers of its group, (units,)."""
    total = torch.zeros(group.units)
    for name, columns in group.layers.items():
        weight = network.get_submodule(name).get_parameter("weight").detach().float().cpu()
        total += weight.flatten(1).abs().sum(1)[columns.cpu()].sum(1)
    return total
