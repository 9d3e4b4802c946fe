"""Opening trained networks by name, and building students from a configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tutelage.ambient import default_settings
from tutelage.config import Config
from tutelage.data.data import Data
from tutelage.data.modality import check_encoding, description
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import as_path
from tutelage.models.calibration import Calibration
from tutelage.models.cohort import CopyFactory
from tutelage.models.external.common import BuiltModel, MeanStd
from tutelage.models.load import make_model
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights
from tutelage.runs.classes import check_classes
from tutelage.runs.header import Header, read_header
from tutelage.runs.locate import locate, run_folder
from tutelage.tasks import Task, task_of_network, wrap_network
from tutelage.trust import Trust, typed_specs

DEFAULT_TASK = "classification"  # of weights files that name no task
RECORDED = "recorded with the weights"
STATED = "as given"
PUBLISHED = "of the published weights"
OWN = "its own"
UNRECORDED = "the network records none"


def weights_metadata(
    spec: str, model: Tapped, data: Data, task: Task, calibration: Calibration | None = None
) -> dict[str, Any]:
    """The metadata that a weights file needs so that its network can be built again.

    The task is recorded only if neither the network nor the data determines it, the calibration if there is one.
    """
    implied = task.recognises(model.module) or task.name == data.targets.task == DEFAULT_TASK
    return {
        **({} if implied else {"task": task.name}),
        **({} if calibration is None else {"calibration": calibration.model_dump()}),
        **({"encoding": data.modality.encoding} if data.modality.encoding else {}),
        **({} if len(data.input_shape) == 3 else {"modality": description(data.modality)}),
        "model": spec,
        "classes": list(data.classes),
        ("image_shape" if len(data.input_shape) == 3 else "input_shape"): list(data.input_shape),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "surgery": applied_operations(model.module),
    }


def load_student(file: Path, network: nn.Module, data: Data) -> nn.Module:
    """Apply the surgery that a weights file records to ``network``, and load the file's weights.

    Raises:
        TutelageError: the file is damaged or is not the one that its run wrote, or its weights do not fit.
    """
    header = read_header(file)
    network = reapply(network, header.surgery, data.modality.example(2, header.shape or data.input_shape))
    load_weights(file, network)
    return network


def student_factory(spec: str, data: Data, *, pretrained: bool = False, trust: Trust = True) -> Callable[[], Tapped]:
    """Return a function that makes students. If ``spec`` names a network object: that object, then copies of it."""
    copies: list[CopyFactory] = []

    def make() -> Tapped:
        if copies:
            return copies[0]()
        built = make_model(
            spec,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
            modality=data.modality,
            pretrained=pretrained,
            trust=trust,
        )
        model = wrap_network(built.module, *(built.mean_std or data.mean_std))
        if not built.from_instance:
            return model
        copies.append(CopyFactory(model))
        return copies[0]()

    return make


@default_settings()
def make_student(spec: str, data: Data, *, pretrained: bool = False, trust: Trust = True) -> Tapped:
    """Build a student. Published weights come with their normalisation; other students use that of the data."""
    return student_factory(spec, data, pretrained=pretrained, trust=trust)()


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and where it came from.

    Attributes:
        model: the network with its normalisation.
        normalisation: a few words on where its mean and standard deviation come from.
        folder: the folder of the run that trained it, if there is one.
        spec: the specification of the network, as in a configuration.
        file: the weights file; ``None`` for published weights and for objects.
        task: the task that its file records or that the network implies; ``None`` if neither does.
        classes: the class names that its file or the published weights record.
        calibration: the calibration that its file records.
        resizing: a few words on where the size comes from to which it resizes images; empty if it does not.
    """

    model: Tapped
    normalisation: str
    folder: Path | None = None
    spec: str = ""
    file: Path | None = None
    task: str | None = None
    classes: tuple[str, ...] = ()
    calibration: Calibration | None = None
    resizing: str = ""

    @property
    def normalisation_is_assumed(self) -> bool:
        """Whether the normalisation is that of the data because the network records none."""
        normalises = bool((self.model.mean != 0).any() or (self.model.std != 1).any())  # false for tokens
        return normalises and self.normalisation.endswith(UNRECORDED)


def open_teachers(
    config: Config, data: Data, teachers: Sequence[str | nn.Module] | None = None, trust: Trust | None = None
) -> tuple[TrainedModel, ...]:
    """Open the teachers of a configuration, or those in ``teachers``: names or networks.

    A teacher of another image size than that of the data resizes its copy of the images, to the ``teacher_size`` of the
    configuration, or else to the size that its file records or for which its weights were published.

    Raises:
        TutelageError: as for ``open_trained``, or no teacher uses the configuration's ``teacher_mean`` or
            ``teacher_size``.
    """
    mean_std = (config.teacher_mean, config.teacher_std) if config.teacher_mean else None
    side = config.teacher_size
    if side is not None and len(data.input_shape) != 3:
        raise TutelageError(
            f"teacher_size={side} resizes images, and {data.name} has {data.modality.noun}; leave it out"
        )
    networks = tuple(
        open_trained(teacher, data, mean_std, trust, "recorded" if side is None else (side, side))
        if isinstance(teacher, str)
        else _from_module(teacher, data, mean_std, None if side is None else (side, side))
        for teacher in (config.teacher if teachers is None else teachers)
    )
    if side is not None and (side, side) != data.input_shape[1:] and not any(network.resizing for network in networks):
        reason = "the teacher reads no images" if networks else "there is no teacher"
        raise TutelageError(f"teacher_size={side} has no effect here: {reason}; leave it out")
    if mean_std is not None:
        check_normalisation_used("teacher_mean and teacher_std", networks)
    return networks


def check_normalisation_used(fields: str, opened: Sequence[TrainedModel]) -> None:
    """Raise a ``TutelageError`` if none of these networks uses the normalisation that these fields give."""
    if all(network.normalisation != STATED for network in opened):
        reason = "the weights record their own" if opened else "there is no teacher"
        raise TutelageError(f"{fields} have no effect here: {reason}; leave them out")


def _from_module(module: nn.Module, data: Data, mean_std: MeanStd | None, size: tuple[int, int] | None) -> TrainedModel:
    """A network that was passed as an object: a ``Tapped`` with its normalisation and size, or a bare module."""
    if isinstance(module, Tapped):
        model, origin = module, OWN
    else:
        mean_std_used, origin = _normalisation(Header(), BuiltModel(module), data, mean_std)
        model = wrap_network(module, *mean_std_used)
    if size is not None and size != model.size:
        model = _with_size(model, size, data)
        return TrainedModel(model, origin, resizing="" if model.size is None else STATED)
    return TrainedModel(model, origin, resizing="" if model.size in (None, data.input_shape[1:]) else OWN)


def _with_size(model: Tapped, size: tuple[int, ...], data: Data) -> Tapped:
    """The network resizing images to (height, width); itself if the images of the data have this size."""
    height, width = size
    same = (height, width) == data.input_shape[1:]
    return model if same and model.size is None else model.with_size((height, width))


@default_settings()
def open_model(text: str, data: Data, trust: Trust | None = None) -> Tapped:
    """Open a trained network in eval mode.

    Args:
        text: a run's folder, ``MODEL@WEIGHTS``, or a ``timm/`` or ``hf/`` name with published weights.
        data: the data on which the network will be run.
        trust: code that may be imported (``check_trusted``). By default the code of the MODEL in ``text``, but not that
            of a network that only the file in a folder names.

    Raises:
        TutelageError: there is no such network, it needs code that is not trusted, or it was trained for another number
            of classes.
    """
    opened = open_trained(text, data, trust=trust)
    check_classes(text, opened.classes, data)
    return opened.model


@default_settings()
def open_trained(
    text: str,
    data: Data,
    mean_std: MeanStd | None = None,
    trust: Trust | None = None,
    size: tuple[int, int] | Literal["recorded"] | None = None,
) -> TrainedModel:
    """As ``open_model``, but for any number of classes and input size; also returns where the network comes from.

    Args:
        text: see ``open_model``.
        data: provides the modality, and the classes and input shape that the file does not record.
        mean_std: normalisation for weights that record none; mean and standard deviation each of length 1 or C. The
            default is that of the published weights, or else that of the data's training split.
        trust: see ``open_model``.
        size: (height, width) to which the network is to resize images, or ``"recorded"``: that of the images on which
            it was trained, as far as its file or the published weights tell. By default it gets the data's images as
            they are, and a warning says so if they have another size than the file records.

    Raises:
        TutelageError: there is no such network, it needs code that is not trusted, it takes other inputs, or
            ``mean_std`` is for another number of channels.
    """
    trust = typed_specs(text) if trust is None else trust
    location = locate(text)
    spec, file, header = location or (text, None, Header())
    _check_inputs(text, header.shape, data, warn=size is None)
    check_encoding(text, header.encoding, data.modality, data.name)
    classes = len(header.classes) or data.num_classes
    if file is not None and not classes:
        raise TutelageError(
            f"{text} does not record its classes and {data.name} has none: no sample has a label; name the classes, by "
            "a test part in folders of classes or as classes=... of Data, or give the folder of the teacher's run"
        )
    built = make_model(
        spec,
        num_classes=classes,
        input_shape=header.shape or ((data.input_shape[0], *size) if isinstance(size, tuple) else data.input_shape),
        modality=data.modality,
        trust=trust,
        pretrained=file is None,
        normalised=file is not None and (bool(header.mean) or mean_std is not None),
        named_in=str(file) if as_path(text).is_dir() else "the configuration",
        own_size=size == "recorded",
    )
    module = built.module if file is None else load_student(file, built.module, data)
    mean_std_used, origin = _normalisation(header, built, data, mean_std)
    own_task = task_of_network(module)
    task = header.task or (None if own_task is None else own_task.name)
    model = wrap_network(module, *mean_std_used)
    size_origin = STATED
    if size == "recorded":
        size, size_origin = _trained_size(header, built)
    if size is not None:
        model = _with_size(model, size, data)
    return TrainedModel(
        model.eval(),
        origin,
        run_folder(text),
        spec,
        file,
        task,
        tuple(header.classes) or built.classes,
        header.calibration,
        "" if model.size is None else size_origin,
    )


def _trained_size(header: Header, built: BuiltModel) -> tuple[tuple[int, int] | None, str]:
    """(height, width) of the images on which weights were trained, if known, and where it comes from."""
    if len(header.shape) == 3:
        return (header.shape[1], header.shape[2]), RECORDED
    return (None, "") if built.input_size is None else (built.input_size[1:], PUBLISHED)


def _normalisation(
    header: Header, built: BuiltModel, data: Data, mean_std: MeanStd | None
) -> tuple[tuple[Sequence[float], Sequence[float]], str]:
    """The mean and standard deviation to use, and a few words on where they come from."""
    recorded = header.mean_std(data.input_shape[0])
    if recorded is not None:
        return recorded, RECORDED
    if mean_std is not None:
        channels = data.input_shape[0]
        for values in mean_std:
            if len(values) not in (1, channels):
                raise TutelageError(
                    f"a mean or standard deviation of {len(values)} channels does not fit the {channels} of "
                    f"{data.name}; give {channels} or 1"
                )
        return mean_std, STATED
    if built.mean_std is not None:
        return built.mean_std, PUBLISHED
    return data.mean_std, f"those of {data.name}: {UNRECORDED}"


def _check_inputs(text: str, shape: Sequence[int], data: Data, *, warn: bool) -> None:
    """Check that inputs have the kind and channels that a network was trained on; ``warn`` if their size differs."""
    if not shape:
        return
    if len(shape) != len(data.input_shape):
        raise TutelageError(
            f"{text} was trained on inputs of shape {tuple(shape)} and the {data.modality.noun} of {data.name} have "
            f"shape {data.input_shape}; use a network for {data.modality.noun}"
        )
    if len(shape) != 3:
        return
    (channels, *size), (data_channels, *data_size) = shape, data.input_shape
    if channels != data_channels:
        raise TutelageError(
            f"{text} was trained on images of {channels} channel{'s' * (channels > 1)} and those of {data.name} have "
            f"{data_channels}; use images, or a network, with the same channels"
        )
    if warn and size != data_size:
        trained_pixels, data_pixels = (" x ".join(map(str, sides)) for sides in (size, data_size))
        warnings.warn(
            f"{text} was trained on images of {trained_pixels} pixels and those of {data.name} have {data_pixels}: it "
            "may be far less accurate on them; folder:, masks: and hf: data can be resized with --image-size",
            TutelageWarning,
            stacklevel=4,
        )
