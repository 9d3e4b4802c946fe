"""The two calls that most users need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.ambient import default_settings
from tutelage.config import Config
from tutelage.data import Data
from tutelage.errors import TutelageError
from tutelage.models.generator import wrapped
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Given, Result, describe, execute, load_data
from tutelage.runs.models import GIVEN, open_model
from tutelage.training.loop import Record
from tutelage.trust import Trust, typed

Network = str | nn.Module | Tapped
Student = Network | Callable[[], nn.Module]


def distill(
    teacher: Network | Sequence[Network],
    student: Student,
    data: str | Data = "digits",
    *,
    method: str = "hinton",
    out: str | Path | None = None,
    report: Callable[[Record], None] | None = None,
    track: str | None = None,
    **config: Any,
) -> Result:
    """Train a student under a teacher.

    Args:
        teacher: a trained ``nn.Module``, a finished run's folder, ``MODEL@WEIGHTS``, ``timm/NAME`` or ``hf/NAME``; or
            several, which are averaged. A bare module takes images normalised with the data's own mean and standard
            deviation; wrap it as ``Tapped(module, mean, std)`` if it wants others. Its parameters are frozen.
        student: a name, an ``nn.Module``, which is trained in place from the weights it has, or a function that makes
            one, for methods that need several.
        data: a name (see ``open_data``), on which the other fields act; or a ``Data``, which is taken as it is.
        method: see ``tutelage methods``; its own parameters go in ``settings={...}``.
        out: a folder to keep the run in. A run that was stopped goes on when it is asked for again.
        report: called with a record an epoch.
        track: who else is told, several with commas between them: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``
            or another tracker that accelerate knows. One that fails is left out with a warning.
        config: any other field of ``Config``: ``epochs``, ``seed``, ``noise``, ``lr``, ... And ``trust=True``: import
            code that a teacher's file names (``module:attr``), not only what you name here; see docs/security.md.

    Returns:
        The student, what was measured and the history.

    Raises:
        TutelageError: for anything you can mend; nothing has been lost.
    """
    teachers = [teacher] if isinstance(teacher, str | nn.Module) else list(teacher)
    return _execute(teachers, student, data, out, report, track, {"method": method, **config})


def train(
    model: Student,
    data: str | Data = "digits",
    *,
    out: str | Path | None = None,
    report: Callable[[Record], None] | None = None,
    track: str | None = None,
    **config: Any,
) -> Result:
    """Train a network without a teacher: a future teacher, a student to compare with, or a cohort.

    Args and errors are those of ``distill``.
    """
    return _execute([], model, data, out, report, track, {"method": "plain", **config})


@default_settings()
def _execute(
    teachers: Sequence[Network],
    student: Student,
    data: str | Data,
    out: str | Path | None,
    report: Callable[[Record], None] | None,
    track: str | None,
    fields: dict[str, Any],
) -> Result:
    trust = fields.pop("trust", False)
    named = Config(
        data=data if isinstance(data, str) else f"{GIVEN}{data.name}",
        student=student if isinstance(student, str) else describe(student, weights=False),
        teacher=tuple(t if isinstance(t, str) else describe(t, weights=True) for t in teachers),
        **fields,
    )
    if isinstance(data, Data):
        acted = [
            name
            for name in ("noise", "imbalance", "per_class", "image_size", "augment", "views")
            if getattr(named, name) != Config.model_fields[name].default
        ]
        if acted:
            raise TutelageError(f"{', '.join(acted)} act on data opened by name; apply them to the Data first")
        opened = data.hold_out(named.validation, named.seed)
    else:
        opened = load_data(named)
    trusted: Trust = trust is True or typed(named.student, *named.teacher, named.method)
    given = Given(
        opened,
        None if isinstance(student, str) else _maker(student, opened),
        tuple(open_model(t, opened, trusted) if isinstance(t, str) else _tapped(t, opened) for t in teachers),
    )
    folder = Path(out) if out is not None else None
    return execute(named, folder, given=given, report=report, track=track, trust=trusted)


def _tapped(module: nn.Module, data: Data) -> Tapped:
    return module if isinstance(module, Tapped) else wrapped(module, *data.mean_std)


def _maker(student: nn.Module | Callable[[], nn.Module], data: Data) -> Callable[[], Tapped]:
    """Students, from a function that makes them or from one that is given: itself first, then copies drawn anew."""
    if not isinstance(student, nn.Module):
        return lambda: _tapped(student(), data)
    original = _tapped(student, data)
    first = copy.deepcopy(original)
    made: list[Tapped] = []

    def make() -> Tapped:
        made.append(original if not made else _drawn_anew(copy.deepcopy(first)))
        return made[-1]

    return make


def _drawn_anew(model: Tapped) -> Tapped:
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return model
