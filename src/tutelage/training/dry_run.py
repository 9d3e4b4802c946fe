"""One batch before the first step: what does not fit is said with names, shapes and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.data import Data
from tutelage.data.loader import in_order
from tutelage.errors import TutelageError, one_line
from tutelage.models.outputs import Outputs
from tutelage.training.learner import Learner

SAMPLES = 4


def dry_run(
    learners: Sequence[Learner], roles: Mapping[Learner, tuple[str, ...]], data: Data, device: torch.device
) -> None:
    """Run every learner and its source on a few samples, build what the terms own, and check what comes out.

    Models are in eval mode meanwhile and are left as they were: no buffer moves, and the random numbers that building
    draws depend on the seed alone.
    """
    batch = next(in_order(data.train.subset(torch.arange(min(SAMPLES, len(data.train)))), device=device, workers=0))
    modes = {module: module.training for learner in learners for module in learner.model.modules()}
    try:
        with torch.no_grad():
            cohort: dict[nn.Module, Outputs] = {}
            for learner in learners:
                learner.model.eval()
                cohort[learner.model] = _outputs(f"learner {learner.name!r}", learner.model, batch, roles[learner])
                _check_classes(f"the model of learner {learner.name!r}", cohort[learner.model], data)
            for learner in learners:
                _try_terms(learner, cohort, batch, data)
    finally:
        for module, training in modes.items():
            module.training = training


def _outputs(who: str, model: nn.Module, batch: Batch, roles: Sequence[str]) -> Outputs:
    try:
        outputs: Outputs = model.tap(batch.inputs, roles)  # type: ignore[operator]
    except TutelageError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        shape = tuple(batch.inputs.shape[1:])
        raise TutelageError(f"{who} cannot take images of shape {shape}: {one_line(error)}") from error
    return outputs


def _check_classes(who: str, outputs: Outputs, data: Data) -> None:
    logits = outputs.logits
    if logits is None:
        return
    if logits.ndim != 2 or logits.shape[1] != data.num_classes:
        raise TutelageError(
            f"{who} gives outputs of shape {tuple(logits.shape)} for {data.num_classes} classes of {data.name}; "
            f"give it a classifier with {data.num_classes} outputs"
        )


def _try_terms(learner: Learner, cohort: Mapping[nn.Module, Outputs], batch: Batch, data: Data) -> None:
    student = cohort[learner.model]
    wanted = tuple(dict.fromkeys(role for w in learner.terms.values() for role in w.term.teacher_roles))
    teacher = None
    if learner.source is not None and wanted:
        try:
            teacher = learner.source(batch, wanted, cohort)
        except TutelageError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            shape = tuple(batch.inputs.shape[1:])
            raise TutelageError(
                f"the source of learner {learner.name!r} cannot teach on images of shape {shape}: {one_line(error)}"
            ) from error
        _check_classes(f"the teacher of learner {learner.name!r}", teacher, data)
    for name, weighted in learner.terms.items():
        term = weighted.term
        try:
            term.build(student, teacher)
            term.to(batch.inputs.device)
            value = term(student, teacher, batch)
        except TutelageError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise TutelageError(
                f"term {name!r} of learner {learner.name!r} failed on a first batch, with student {_shapes(student)} "
                f"and teacher {_shapes(teacher)}: {one_line(error)}"
            ) from error
        _check_value(f"term {name!r} of learner {learner.name!r}", value, len(batch))


def _check_value(who: str, value: object, samples: int) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (samples,)):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TutelageError(f"{who} must give one value a sample, ({samples},), or one value, (); it gave {got}")


def _shapes(outputs: Outputs | None) -> str:
    if outputs is None:
        return "none"
    shapes = {role: tuple(value.shape) for role, value in outputs.features.items()}
    if outputs.logits is not None:
        shapes = {"logits": tuple(outputs.logits.shape), **shapes}
    return ", ".join(f"{role} {shape}" for role, shape in shapes.items())
