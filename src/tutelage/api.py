"""The functions ``distill`` and ``train``."""

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
from tutelage.runs.teacher_labels import warn_of_label_differences
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
    """Train a student with a teacher (knowledge distillation).

    Args:
        teacher: a trained ``nn.Module``, the folder of a finished run, ``MODEL@WEIGHTS``, ``timm/NAME`` or
            ``hf/NAME``; or several, whose probabilities are averaged. The teacher's parameters are frozen. Images for a
            bare module, or for weights that record no normalization, are normalized with the mean and standard
            deviation of the data; for another normalization pass ``teacher_mean`` and ``teacher_std``, or wrap the
            module as ``Tapped(module, mean, std)``. A teacher of another image size resizes its copy of the images: to
            the size that its weights record, to ``teacher_size``, or to that of ``Tapped(..., size=...)``. Before
            training, the logger ``tutelage`` reports the size, normalization and accuracy of each teacher: as a warning
            if the normalization is that of the data.
        student: a name, an ``nn.Module``, which is trained in place from its present weights, or a function that
            returns one. Methods that train several networks copy a module, and initialise the copies' weights again
            (``models/cohort.py``). Student and teacher must not share modules.
        data: a name or a path (see ``open_data``), a ``Data``, or an object that ``open_data`` converts: a pair of
            arrays, a map-style dataset. Fields such as ``noise`` apply to data opened by name only.
        method: a name (see ``tutelage methods``), ``FILE.py:NAME``, ``module:NAME`` or a function decorated with
            ``@tutelage.method(...)``; its parameters are passed as ``settings={...}``.
        out: the run's folder. The same call resumes a run that was stopped.
        report: called with one record per epoch.
        track: experiment trackers, comma-separated: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio`` or another
            tracker that accelerate supports. A tracker that fails is left out with a warning.
        config: any other field of ``Config``: ``epochs``, ``seed``, ``noise``, ``lr``, ... Also ``trust=True``: import
            code that a teacher's file names (``module:attr``), not only code that this call names; see
            docs/security.md.

    Returns:
        The student, its metrics and the history.

    Raises:
        TutelageError: for anything that you can correct; a run with a folder can then be resumed.
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
    """Train a network without a teacher: a future teacher, a baseline, or a cohort.

    Arguments and errors are those of ``distill``.
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
    data_set = _held_out(data, config) if isinstance(data, Data) else load_data(config)
    student = os.fspath(student) if isinstance(student, os.PathLike) else student
    make_student = None if isinstance(student, str) else _student_factory(student, data_set, config.seed)
    config = config.replace(
        student=student if isinstance(student, str) else describe_object(student, weights=False),
        teacher=tuple(t if isinstance(t, str) else describe_object(t, weights=True) for t in names),
    )
    trusted: Trust = trust is True or typed_specs(config.student, *config.teacher, config.method)
    method = fields["method"] if isinstance(fields["method"], Method) else None
    teacher_models = open_teachers(config, data_set, names, trusted)
    overrides = Overrides(data_set, make_student, teacher_models, method)
    warn_of_label_differences(config)
    folder = None if out is None else as_path(out)
    # Python prints warnings of loggers by default, and information only if the program configures logging.
    announce = LOGGER.warning if any(teacher.normalisation_is_assumed for teacher in teacher_models) else LOGGER.info
    result = execute(config, folder, overrides=overrides, report=report, announce=announce, track=track, trust=trusted)
    if result.folder is not None and result.metrics:
        add_loading_script(result.folder)
    return result


def _held_out(data: Data, config: Config) -> Data:
    """Hold out the validation split of a ``Data`` that was passed as an object."""
    conditions = ("noise", "imbalance", "per_class", "image_size", "test", "skip_bad", "augment", "views", "cache")
    unusable = [name for name in conditions if getattr(config, name) != Config.model_fields[name].default]
    if unusable:
        raise TutelageError(f"{', '.join(unusable)} apply to data opened by name; apply them to the Data first")
    return data.hold_out(config.validation, config.seed)


def _student_factory(student: nn.Module | Callable[[], nn.Module], data: Data, seed: int = 0) -> Callable[[], Tapped]:
    """Return a function that makes students: calls of ``student``, or the network itself and then copies of it.

    The weights of copies are initialised again. Lazy layers of a network are initialised with the run's seed.
    """
    if not isinstance(student, nn.Module):
        return ModelFactory(lambda: _tapped(student(), data))
    with initial_weights(seed):
        return CopyFactory(_tapped(student, data))


def _tapped(module: nn.Module, data: Data) -> Tapped:
    if not isinstance(module, nn.Module):
        raise TutelageError(
            f"expected an nn.Module as the network and got a {type(module).__name__}; return the network"
        )
    model = module if isinstance(module, Tapped) else wrap_network(module, *data.mean_std)
    initialise_lazy_layers(model.module, data.modality.example(2, data.input_shape))
    return model
