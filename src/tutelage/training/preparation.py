"""What happens to learners before the first step: checks, placement on the device, and the dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tutelage.config import Recipe
from tutelage.data.data import Data
from tutelage.errors import TutelageError
from tutelage.models.random_state import rng_state_restored
from tutelage.models.state import check_state, shared_tensors, shared_tensors_error
from tutelage.tasks import Task
from tutelage.training.batch_changes import BatchChanges
from tutelage.training.depth import layer_factors
from tutelage.training.dry_run import dry_run, example_batch
from tutelage.training.execution import Execution
from tutelage.training.hardware import place
from tutelage.training.learner import Learner
from tutelage.training.optim import RECIPE_OPTIONS, ParameterOptions

DEFAULT_RECIPE = Recipe()


def check_learners(learners: Sequence[Learner]) -> None:
    """Refuse learners that cannot be trained together.

    Raises:
        TutelageError: there is none, two have the same name or model, a model cannot be saved or has no gradients, or
            a learner and its frozen teacher share weights.
    """
    names = [learner.name for learner in learners]
    if not names:
        raise TutelageError("fit needs at least one learner, got none; pass a Learner")
    if len(set(names)) < len(names):
        raise TutelageError(f"the learners of a fit need different names, got {names}")
    by_model: dict[nn.Module, str] = {}
    for learner in learners:
        if learner.model in by_model:
            raise TutelageError(
                f"learners {by_model[learner.model]!r} and {learner.name!r} train the same model; "
                "make one learner of them, with the terms of both"
            )
        by_model[learner.model] = learner.name
        if any(tensor.is_inference() for tensor in (*learner.model.parameters(), *learner.model.buffers())):
            raise TutelageError(
                f"the model of learner {learner.name!r} was made inside torch.inference_mode(), where weights "
                "record no gradients; make it outside"
            )
    for learner in learners:
        _check_network(learner)


def _check_network(learner: Learner) -> None:
    for model in (learner.model, learner.deployed):
        check_state(f"the network of learner {learner.name!r}", model.module)
    half = {p.dtype for p in learner.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if half:
        raise TutelageError(
            f"the weights of learner {learner.name!r} are {half.pop()}, in which small updates are lost: convert "
            "the network with .float(); precision='bfloat16' runs float32 weights in bfloat16"
        )
    if learner.source is None:
        return
    others = [model for model in learner.source.models if model is not learner.model]
    for teacher in (model for model in others if not any(p.requires_grad for p in model.parameters())):
        shared = shared_tensors(learner.model.module, teacher.module)
        if trained := [name for name in shared if learner.trainable is None or learner.trainable(name)]:
            raise TutelageError(shared_tensors_error(f"learner {learner.name!r}", "its teacher", trained))


def prepare(
    learners: Sequence[Learner],
    roles: Mapping[Learner, tuple[str, ...]],
    task: Task,
    data: Data,
    execution: Execution,
    changes: BatchChanges,
) -> None:
    """Move all networks to the device and try them on one batch. The random generators are left as they were.

    Raises:
        TutelageError: the learners do not fit the data or their sources.
    """
    teachers = [model for learner in learners if learner.source for model in learner.source.models]
    groups = [*((learner.model, learner.deployed) for learner in learners), *((teacher,) for teacher in teachers)]
    with rng_state_restored():
        batch = example_batch(data, execution.device)
        with rng_state_restored():  # trial passes draw random numbers, on which the terms' weights must not depend
            for models in groups:
                place(*dict.fromkeys(models), hardware=execution.hardware, example=batch.inputs)
        with execution.autocast():
            dry_run(learners, roles, task, data, changes(batch, 0))
    for learner in learners:
        learner.modules.to(execution.device)


def trainable_parameters(learner: Learner) -> list[nn.Parameter]:
    """The parameters for the learner's optimizer.

    Raises:
        TutelageError: there are none.
    """
    parameters = list(learner.parameters())
    if not parameters:
        raise TutelageError(
            f"learner {learner.name!r} has nothing to train: every parameter is frozen. "
            "Is its model also somebody's frozen teacher, or does trainable=... leave none?"
        )
    return parameters


def parameter_options(learner: Learner, recipe: Recipe = DEFAULT_RECIPE) -> dict[nn.Parameter, ParameterOptions]:
    """The optimizer's options by parameter, for those that are not optimized as the recipe says for all.

    Factors on the learning rate, of the learner and of the layer's depth, are multiplied; the learner's weight decay
    has precedence over ``decay_norms``.
    """
    parameters = dict(learner.model.module.named_parameters())
    chosen = {parameters[name]: choice for name, choice in learner.parameter_options().items()}
    factors = layer_factors(learner.model.module, recipe.layer_decay) if recipe.layer_decay < 1 else {}
    options = {}
    for parameter in learner.parameters():
        choice = chosen.get(parameter, RECIPE_OPTIONS)
        decay = choice.weight_decay
        if decay is None and not recipe.decay_norms and parameter.ndim <= 1:
            decay = 0.0
        own = ParameterOptions(lr=choice.lr * factors.get(parameter, 1.0), weight_decay=decay)
        if own != RECIPE_OPTIONS:
            options[parameter] = own
    return options
