"""Optimizers by name, and the learning rate schedule as a function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tutelage.config import Recipe
from tutelage.errors import TutelageError, one_line, unknown

# Optimizers of torch.optim that need more than one backward pass per step, or sparse gradients.
_UNSUPPORTED = {"LBFGS": "computes the loss several times per step", "SparseAdam": "takes sparse gradients only"}


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer for these parameters.

    A name is looked up in ``torch.optim``; of lr, momentum, nesterov and weight decay, the optimizer gets those that
    it has. A callable is a factory, called with the list of parameters.
    """
    parameters = list(parameters)
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


def lr_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The factor of the peak learning rate at this step, counted from 0 over the whole fit."""
    warm = recipe.warmup * steps_per_epoch
    warmup = min(1.0, (step + 1) / warm) if warm else 1.0
    progress = step / (recipe.epochs * steps_per_epoch)
    if recipe.schedule == "step":
        return warmup * recipe.gamma ** sum(progress >= share for share in recipe.milestones)
    if recipe.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    return warmup
