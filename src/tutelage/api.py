"""The two calls that most users need."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tutelage.ambient import default_settings
from tutelage.config import OBJECT_PREFIX, Config
from tutelage.data import Data, open_data
from tutelage.data.configured import load_data
from tutelage.data.open import spec_from_path
from tutelage.errors import TutelageError
from tutelage.files import as_path
from tutelage.methods import Method
from tutelage.models.cohort import CopyFactory, ModelFactory
from tutelage.models.state import initialise_lazy_layers
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, Result, execute
from tutelage.runs.inputs import describe_object
from tutelage.runs.loading_script import add_loading_script
from tutelage.runs.models import open_teachers
from tutelage.runs.teachers import warn_of_label_differences
from tutelage.tasks import wrap_network
from tutelage.training.loop import Record
from tutelage.training.run import initial_weights
from tutelage.trust import Trust, typed_specs

LOGGER = logging.getLogger("tutelage")

Network = str | os.PathLike[str] | nn.Module
Student = Network | Callable[[], nn.Module]


def distill(
    teacher: Network | Sequence[Network],
    student: Student,
    data: str | os.PathLike[str] | Data | object = "digits",
    *,
    method: str | Method = "hinton",
    out: str | os.PathLike[str] | None = None,
    report: Callable[[Record], None] | None = None,
    track: str | None = None,
    **config: Any,
) -> Result:
    """Train a student under a teacher.

    Args:
        teacher: a trained ``nn.Module``, the folder of a finished run, ``MODEL@WEIGHTS``, ``timm/NAME`` or
            ``hf/NAME``; or several, which are averaged. A bare module, or weights that record no normalization, get
            images normalized with the data's own mean and standard deviation; for others give ``teacher_mean`` and
            ``teacher_std``, or wrap the module as ``Tapped(module, mean, std)``. The logger ``tutelage`` tells the
            normalization and accuracy of each teacher before training, as a warning where the normalization is such a
            guess. Its parameters are frozen.
        student: a name, an ``nn.Module``, which is trained in place from the weights it has, or a function that makes
            one. Methods that train several networks copy a module, and draw the weights of the copies anew
            (``models/cohort.py``). It has no part in common with the teacher.
        data: a name or a path (see ``open_data``), on which the other fields act; or a ``Data``, taken as it is, or an
            object that ``open_data`` makes one of: a pair of arrays, a map-style dataset.
        method: a name (see ``tutelage methods``), ``FILE.py:NAME``, ``module:NAME`` or a function decorated with
            ``@tutelage.method(...)``; its own parameters go in ``settings={...}``.
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
    teachers = [teacher] if isinstance(teacher, str | os.PathLike | nn.Module) else list(teacher)
    return _execute(teachers, student, data, out, report, track, {"method": method, **config})


def train(
    model: Student,
    data: str | os.PathLike[str] | Data | object = "digits",
    *,
    out: str | os.PathLike[str] | None = None,
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
    data: str | os.PathLike[str] | Data | object,
    out: str | os.PathLike[str] | None,
    report: Callable[[Record], None] | None,
    track: str | None,
    fields: dict[str, Any],
) -> Result:
    trust = fields.pop("trust", False)
    if not isinstance(data, str | os.PathLike | Data):
        data = open_data(data, test=fields.pop("test", None))
    names = [os.fspath(t) if isinstance(t, os.PathLike) else t for t in teachers]
    config = Config(data=f"{OBJECT_PREFIX}{data.name}" if isinstance(data, Data) else spec_from_path(data), **fields)
    opened = _held_out(data, config) if isinstance(data, Data) else load_data(config)
    student = os.fspath(student) if isinstance(student, os.PathLike) else student
    make = None if isinstance(student, str) else _maker(student, opened, config.seed)
    config = config.replace(
        student=student if isinstance(student, str) else describe_object(student, weights=False),
        teacher=tuple(t if isinstance(t, str) else describe_object(t, weights=True) for t in names),
    )
    trusted: Trust = trust is True or typed_specs(config.student, *config.teacher, config.method)
    method = fields["method"] if isinstance(fields["method"], Method) else None
    taught_by = open_teachers(config, opened, names, trusted)
    overrides = Overrides(opened, make, taught_by, method)
    warn_of_label_differences(config)
    folder = None if out is None else as_path(out)
    # A line on each teacher: seen where its normalisation is a guess, and otherwise by those who configure logging.
    announce = LOGGER.warning if any(teacher.guessed for teacher in taught_by) else LOGGER.info
    result = execute(config, folder, overrides=overrides, report=report, announce=announce, track=track, trust=trusted)
    if result.folder is not None and result.metrics:
        add_loading_script(result.folder)
    return result


def _held_out(data: Data, config: Config) -> Data:
    """Data given as an object, with its held-out part."""
    conditions = ("noise", "imbalance", "per_class", "image_size", "test", "skip_bad", "augment", "views")
    acting = [name for name in conditions if getattr(config, name) != Config.model_fields[name].default]
    if acting:
        raise TutelageError(f"{', '.join(acting)} act on data opened by name; apply them to the Data first")
    return data.hold_out(config.validation, config.seed)


def _maker(student: nn.Module | Callable[[], nn.Module], data: Data, seed: int = 0) -> Callable[[], Tapped]:
    """Makes students: by a function that is given, or from a single network, itself first and then copies drawn anew.

    The lazy layers of a network that is given are drawn as those of a student of this seed.
    """
    if not isinstance(student, nn.Module):
        return ModelFactory(lambda: _tapped(student(), data))
    with initial_weights(seed):
        return CopyFactory(_tapped(student, data))


def _tapped(module: nn.Module, data: Data) -> Tapped:
    if not isinstance(module, nn.Module):
        raise TutelageError(f"expected a network, an nn.Module, and got a {type(module).__name__}; return the network")
    model = module if isinstance(module, Tapped) else wrap_network(module, *data.mean_std)
    initialise_lazy_layers(model.module, data.modality.example(2, data.input_shape))
    return model
