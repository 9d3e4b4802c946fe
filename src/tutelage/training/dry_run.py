"""A trial run on one batch before training; errors name the parts, their shapes and the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NETWORK_ERRORS, NonFiniteError, TutelageError, TutelageWarning, one_line
from tutelage.models.modes import eval_mode, restore_state
from tutelage.models.outputs import Outputs
from tutelage.models.state import dtype_hint
from tutelage.tasks import Task
from tutelage.terms.term import View
from tutelage.training.finite import first_non_finite, non_finite_teacher
from tutelage.training.learner import ForwardPass, Learner

SAMPLES = 4


def dry_run(
    learners: Sequence[Learner],
    roles: Mapping[Learner, tuple[str, ...]],
    task: Task,
    data: Data,
    batch: Batch,
    *,
    train_mode: bool = True,
) -> None:
    """Run every learner and its source on a few samples, build the terms, and check all outputs.

    Models run in eval mode, then in train mode; their buffers and modes are restored.

    Args:
        learners: the cohort.
        roles: the roles of each learner's model that are read on the current batch.
        task: checks the outputs that it evaluates.
        data: the data set.
        batch: from ``example_batch``.
        train_mode: whether to run the learners in train mode too.

    Raises:
        TutelageError: a network, a term or a source fails, or its outputs have a wrong shape.
        NonFiniteError: a teacher's outputs are NaN or infinite.
    """
    teachers = [model for learner in learners if learner.source is not None for model in learner.source.models]
    # The bare networks, so that the roles found by a Tapped are not restored.
    networks = [model.module for model in (*teachers, *(learner.model for learner in learners))]
    passes: dict[Learner, dict[View | None, ForwardPass]] = {}
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(restore_state(*networks))
        cohort: dict[nn.Module, Outputs] = {}
        for learner in learners:
            stack.enter_context(eval_mode(learner.model))
            cohort[learner.model] = Outputs(None)
            if roles[learner]:
                who = f"the model of learner {learner.name!r}"
                cohort[learner.model] = _outputs(
                    f"learner {learner.name!r}", learner.model, batch, roles[learner], data
                )
                _check(task, who, cohort[learner.model], roles[learner], data)
                _warn_of_probabilities(who, cohort[learner.model], task)
        for learner in learners:
            passes[learner] = _try_terms(learner, cohort, batch, task, data)
    for learner in learners if train_mode else ():
        with restore_state(learner.model, learner.modules), torch.no_grad():
            learner.train()
            for view, forward_pass in passes[learner].items():
                view_roles = roles[learner] if view is None else learner.roles(view)
                if view_roles:
                    who = f"learner {learner.name!r} in train mode"
                    _check(
                        task, who, _outputs(who, learner.model, forward_pass.batch, view_roles, data), view_roles, data
                    )


def _check(task: Task, who: str, outputs: Outputs, roles: Sequence[str], data: Data) -> None:
    """Refuse outputs that the task cannot evaluate, if it evaluates one of these roles."""
    if any(role in task.roles for role in roles):
        task.check(who, outputs, data)


def example_batch(data: Data, device: torch.device) -> Batch:
    """A few training samples without augmentation, as both views."""
    batch = next(
        evaluation_batches(data.train.subset(torch.arange(min(SAMPLES, len(data.train)))), device=device, workers=0)
    )
    index = batch.index.cpu()
    key = torch.stack([index, torch.full_like(index, data.views.identity)], 1)
    return replace(batch, key=key, second=batch.inputs)


def _outputs(who: str, model: nn.Module, batch: Batch, roles: Sequence[str], data: Data) -> Outputs:
    try:
        outputs: Outputs = model.tap(batch.inputs, roles)  # type: ignore[operator]
    except TutelageError:
        raise
    except NETWORK_ERRORS as error:
        shape = tuple(batch.inputs.shape[1:])
        raise TutelageError(
            f"{who} cannot take {data.modality.noun} of shape {shape}: {_because(error, model)}"
        ) from error
    return outputs


def _because(error: Exception, *models: nn.Module) -> str:
    message = one_line(error)
    if note := next((note for note in map(dtype_hint, models) if note), ""):
        return message + note
    return f"{message}; try --precision float32" if "BFloat16" in message else message


def _warn_of_probabilities(who: str, outputs: Outputs, task: Task) -> None:
    """Warn if logits are probabilities, whose softmax is nearly uniform. Log-probabilities are valid logits."""
    for logits in (member.logits for member in outputs.members or (outputs,)) if task.outputs_are_logits else ():
        if logits is None or logits.ndim < 2 or logits.shape[-1] == 1:
            continue
        if bool(((logits >= 0) & ((logits.sum(-1, keepdim=True) - 1).abs() < 0.01)).all()):
            warnings.warn(
                f"{who} gives probabilities (each row is 0 or more and adds up to 1), which are taken for logits; "
                "remove the softmax at its end",
                TutelageWarning,
                stacklevel=2,
            )
            return


def _try_terms(
    learner: Learner, cohort: Mapping[nn.Module, Outputs], batch: Batch, task: Task, data: Data
) -> dict[View | None, ForwardPass]:
    forward_pass = ForwardPass(batch, cohort[learner.model], _teacher(learner, batch, None, cohort, task, data))
    passes: dict[View | None, ForwardPass] = {None: forward_pass}
    for view in learner.views():
        passes[view] = _try_view(learner, view, forward_pass, task, data)
    for name, weighted in learner.terms.items():
        term, forward_pass = weighted.term, passes[weighted.view]
        teacher = passes[weighted.other].student if weighted.between else forward_pass.teacher
        try:
            with torch.autocast(batch.inputs.device.type, enabled=False):
                term.build(forward_pass.student, teacher)
            term.to(batch.inputs.device)
            value = term(forward_pass.student, teacher, forward_pass.batch)
        except TutelageError as error:
            raise TutelageError(f"term {name!r} of learner {learner.name!r}: {error}") from error
        except NETWORK_ERRORS as error:
            raise TutelageError(
                f"term {name!r} of learner {learner.name!r} failed on a first batch, with student "
                f"{_shapes(forward_pass.student)} and teacher {_shapes(teacher)}: {one_line(error)}"
            ) from error
        who = f"term {name!r} of learner {learner.name!r}"
        _check_value(who, value, len(forward_pass.batch))
        if batch.label_weight is not None and term.reads_labels and value.ndim == 0:
            raise TutelageError(
                f"{who} has one value for the whole batch, which class_weights cannot weight; leave it out"
            )
    return passes


def _teacher(
    learner: Learner, batch: Batch, view: View | None, cohort: Mapping[nn.Module, Outputs], task: Task, data: Data
) -> Outputs | None:
    roles = learner.teacher_roles(view=view)
    if learner.source is None or not roles:
        return None
    try:
        teacher = learner.source(batch, roles, cohort)
    except TutelageError as error:
        raise TutelageError(f"the teacher of learner {learner.name!r}: {error}") from error
    except NETWORK_ERRORS as error:
        shape = tuple(batch.inputs.shape[1:])
        names = ", ".join(type(model.module).__name__ for model in learner.source.models)
        raise TutelageError(
            f"the teacher of learner {learner.name!r}{names and f' ({names})'} cannot teach on {data.modality.noun} of "
            f"shape {shape}: {_because(error, *learner.source.models)}"
        ) from error
    if not learner.source.reads:  # outputs of a cohort are checked above
        who = f"the teacher of learner {learner.name!r}"
        _check(task, who, teacher, roles, data)
        if match := first_non_finite(teacher):
            raise NonFiniteError(non_finite_teacher(learner.name, *match))
        _warn_of_probabilities(who, teacher, task)
    return teacher


def _try_view(learner: Learner, view: View, forward_pass: ForwardPass, task: Task, data: Data) -> ForwardPass:
    who = f"{type(view).__name__} of learner {learner.name!r}"
    try:
        batch: object = view(forward_pass.batch, forward_pass.student, forward_pass.teacher)
    except TutelageError as error:
        raise TutelageError(f"{who}: {error}") from error
    except NETWORK_ERRORS as error:
        raise TutelageError(f"{who} failed on a first batch: {one_line(error)}") from error
    if not isinstance(batch, Batch):
        raise TutelageError(f"{who} must return a Batch, not {type(batch).__name__}")
    if batch.weight is not None and tuple(batch.weight.shape) != (len(batch),):
        raise TutelageError(
            f"the weight in the batch of {who} must be one number per sample, ({len(batch)},); "
            f"it has shape {tuple(batch.weight.shape)}"
        )
    student = _outputs(
        f"learner {learner.name!r}, on {type(view).__name__},", learner.model, batch, learner.roles(view), data
    )
    return ForwardPass(batch, student, _teacher(learner, batch, view, {}, task, data))


def _check_value(who: str, value: object, samples: int) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (samples,)):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TutelageError(f"{who} must return one value per sample, ({samples},), or a scalar, (); it returned {got}")


def _shapes(outputs: Outputs | None) -> str:
    if outputs is None:
        return "none"
    shapes = {role: tuple(value.shape) for role, value in outputs.features.items()}
    if outputs.logits is not None:
        shapes = {"logits": tuple(outputs.logits.shape), **shapes}
    return ", ".join(f"{role} {shape}" for role, shape in shapes.items())
