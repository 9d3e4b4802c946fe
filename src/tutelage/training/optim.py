"""Optimizers by name, options by parameter, and the learning rate schedule as a function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from tutelage.config import Recipe
from tutelage.errors import TutelageError, one_line, unknown
from tutelage.fields import Fields

# Optimizers of torch.optim that need more than one backward pass per step, or sparse gradients.
_UNSUPPORTED = {"LBFGS": "computes the loss several times per step", "SparseAdam": "takes sparse gradients only"}


class ParameterOptions(Fields):
    """How a parameter is optimized, where that differs from the recipe.

    Args:
        lr: a factor on the learning rate, in each step of the schedule.
        weight_decay: its weight decay; ``None`` for that of the recipe.

    Raises:
        TutelageError: a negative or infinite value, or a factor of 0.
    """

    noun: ClassVar[str] = "the options of a parameter"

    lr: float = Field(default=1.0, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


RECIPE_OPTIONS = ParameterOptions()
"""Those of a parameter that is optimized as the recipe says."""


def make_optimizer(
    recipe: Recipe,
    parameters: Iterable[nn.Parameter],
    options: Mapping[nn.Parameter, ParameterOptions] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """The recipe's optimizer for these parameters.

    A name is looked up in ``torch.optim``; of lr, momentum, nesterov and weight decay, the optimizer gets those that
    it has. A callable is a factory, called with the list of parameters.

    Args:
        recipe: the optimizer and its settings.
        parameters: what it updates.
        options: of the parameters that the optimizer does not update as the recipe says.

    Raises:
        TutelageError: there is no such optimizer, it cannot be used here, or it does not accept its settings.
    """
    optimizer = _optimizer(recipe, list(parameters))
    if options:  # after its construction, since a factory may have groups and a learning rate of its own
        optimizer.param_groups = [
            part for group in optimizer.param_groups for part in _divided(group, options, type(optimizer).__name__)
        ]
    return optimizer


def _divided(
    group: dict[str, Any], options: Mapping[nn.Parameter, ParameterOptions], name: str
) -> list[dict[str, Any]]:
    """Divide a parameter group by the options of its parameters."""
    parts: dict[ParameterOptions, dict[str, Any]] = {}
    for parameter in group["params"]:
        choice = options.get(parameter, RECIPE_OPTIONS)
        part = parts.setdefault(choice, group | {"params": [], "lr": group["lr"] * choice.lr})
        part["params"].append(parameter)
    for choice, part in parts.items():
        if choice.weight_decay and "weight_decay" not in group:
            raise TutelageError(
                f"the optimizer {name} has no weight decay, and the options of a parameter set one of "
                f"{choice.weight_decay:g}; choose SGD or AdamW, for example"
            )
        if choice.weight_decay is not None:
            part["weight_decay"] = choice.weight_decay
    return list(parts.values())


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if callable(recipe.optimizer):
        custom = recipe.optimizer(parameters)
        if not isinstance(custom, torch.optim.Optimizer):
            raise TutelageError(f"the optimizer factory must return a torch optimizer, not {type(custom).__name__}")
        return custom
    available = {
        name: cls
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
    }
    factory = available.get(recipe.optimizer) or {name.lower(): cls for name, cls in available.items()}.get(
        recipe.optimizer.lower()
    )
    if factory is None:
        raise unknown("optimizer", recipe.optimizer, available.keys() - _UNSUPPORTED.keys())
    if factory.__name__ in _UNSUPPORTED:
        raise TutelageError(
            f"the optimizer {recipe.optimizer!r} {_UNSUPPORTED[factory.__name__]}; choose SGD or AdamW, for example"
        )
    accepted = inspect.signature(factory).parameters
    options: dict[str, Any] = {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "nesterov": recipe.nesterov and recipe.momentum > 0,
        "weight_decay": recipe.weight_decay,
        "fused": all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters) or None,
    }
    try:
        optimizer = factory(parameters, **{name: value for name, value in options.items() if name in accepted})
    except (TypeError, ValueError) as error:
        raise TutelageError(
            f"torch.optim.{factory.__name__}: {one_line(error)}; choose another optimizer or other values"
        ) from error
    if isinstance(optimizer, torch.optim.SGD) and recipe.momentum:
        # Fused SGD fails if a parameter gets its first gradient later than others. Starting from 0 is equivalent.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


RISE, START, END = 0.3, 1 / 25, 1e-4
"""The one-cycle schedule: share of the run in which the rate rises, first rate by the peak, last rate by the first."""


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The factor of the peak learning rate at this step, counted from 0 over the whole fit.

    ``one-cycle`` (Smith, Topin 2018, arXiv 1708.07120) rises from 1/25 to 1 and falls to 1/250,000, along half a cosine
    each: the two phases, and the defaults, of torch's ``OneCycleLR`` without cycles of the momentum.
    """
    warm = recipe.warmup * steps_per_epoch
    warmup = min(1.0, (step + 1) / warm) if warm else 1.0
    progress = step / (recipe.epochs * steps_per_epoch)
    if recipe.schedule == "step":
        return warmup * recipe.gamma ** sum(progress >= share for share in recipe.milestones)
    if recipe.schedule == "one-cycle":
        return _one_cycle(step, recipe.epochs * steps_per_epoch)
    if recipe.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    return warmup


def _one_cycle(step: int, steps: int) -> float:
    """The factor of one cycle over this many steps."""
    top, last = RISE * steps - 1, steps - 1
    if step <= top:
        return _half_cosine(START, 1.0, step / top)
    return _half_cosine(1.0, START * END, (step - top) / (last - top))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
