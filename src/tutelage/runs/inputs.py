"""The identity of a run's inputs, so that a run is resumed only on the inputs that it started with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import nn

from tutelage.config import OBJECT_PREFIX, Config
from tutelage.data import Data
from tutelage.methods import Method
from tutelage.models.external.user_code import import_attribute
from tutelage.models.fingerprint import fingerprint
from tutelage.models.load import is_imported
from tutelage.models.state import check_state
from tutelage.models.tapped import Tapped
from tutelage.runs.code import digest_of_method, digest_of_networks
from tutelage.runs.folder import DATA, NETWORK_CODE
from tutelage.runs.initial_weights import InitialWeights
from tutelage.tasks import Task


def input_fingerprints(
    data: Data,
    teachers: Sequence[Tapped],
    method: Method,
    task: Task,
    config: Config,
    weights: InitialWeights | None = None,
    *,
    by_name: bool,
) -> dict[str, str]:
    """Fingerprints of the data, the teachers and the code that a run uses: a run with other inputs is another run.

    Args:
        data: the data set, with its held-out split.
        teachers: the teachers' networks.
        method: the training method; its code counts if it is not the package's own.
        task: counts where neither the method nor the data's targets determine it.
        config: whose teachers', and whose student's, code counts if it is not the package's own.
        weights: from which the student starts.
        by_name: whether the student is built from its name in the configuration.
    """
    inputs = {DATA: data.fingerprint}
    inputs |= {f"teacher {number}": _identity(teacher) for number, teacher in enumerate(teachers, 1)}
    if weights is not None:
        inputs["initial weights"] = weights.fingerprint
    if method.task is None and task.name != data.targets.task:
        inputs["task"] = task.name
    networks = config.teacher
    if by_name:
        if is_imported(config.student):
            import_attribute(config.student, "model")  # its source files are known after the import
        networks = (config.student, *networks)
    code = {"method source": digest_of_method(method), NETWORK_CODE: digest_of_networks(networks)}
    return inputs | {name: digest for name, digest in code.items() if digest is not None}


def _identity(teacher: Tapped) -> str:
    """The fingerprint of a teacher's weights, and the size to which it resizes images, if it does."""
    size = "" if teacher.size is None else " at {} x {} pixels".format(*teacher.size)
    return f"{fingerprint(teacher)}{size}"


def describe_object(value: object, *, weights: bool) -> str:
    """Text that stands for a Python object in a configuration.

    Args:
        value: a network, or a function that makes one.
        weights: whether the text contains a hash of the network's weights, as for teachers, or of the names and shapes
            of its tensors, as for students: training changes a student's weights, and the same call resumes the run.
    """
    if isinstance(value, Tapped):
        value = value.module
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{OBJECT_PREFIX}{named.__module__}.{named.__qualname__}"
    if not isinstance(value, nn.Module):
        return name
    return f"{name}:{fingerprint(value) if weights else _shape(value)}"


def _shape(model: nn.Module) -> str:
    check_state(type(model).__name__, model)
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()])
    return hashlib.sha256(shapes.encode()).hexdigest()[:16]
