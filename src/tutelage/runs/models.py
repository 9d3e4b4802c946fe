"""Trained networks from what a user names, and students from what a configuration says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.ambient import default_settings
from tutelage.config import Config
from tutelage.data.data import Data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import as_path
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

DEFAULT_TASK = "classification"  # of a weights file that names none
RECORDED = "recorded with the weights"
STATED = "as given"
UNRECORDED = "the network records none"


def weights_metadata(spec: str, model: Tapped, data: Data, task: Task) -> dict[str, Any]:
    """What a weights file has to say of itself for its network to be built again.

    The task is named where it follows neither from the network nor from the data.
    """
    obvious = task.recognises(model.module) or task.name == data.targets.task == DEFAULT_TASK
    return {
        **({} if obvious else {"task": task.name}),
        "model": spec,
        "classes": list(data.classes),
        ("image_shape" if len(data.input_shape) == 3 else "input_shape"): list(data.input_shape),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "surgery": applied_operations(model.module),
    }


def load_student(file: Path, network: nn.Module, data: Data) -> nn.Module:
    """The network that a file's weights are for, with them: ``network``, after the surgery that the file tells of.

    Raises:
        TutelageError: when the file is damaged or not the one that its run has written, or its weights do not fit.
    """
    header = read_header(file)
    network = reapply(network, header.surgery, data.modality.example(2, header.shape or data.input_shape))
    load_weights(file, network)
    return network


def student_factory(spec: str, data: Data, *, pretrained: bool = False, trust: Trust = True) -> Callable[[], Tapped]:
    """A function that makes students; a spec of one network gives it first, and then copies with new weights."""
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
    """A student with fresh weights (or published ones), normalised as those weights want or as the data is."""
    return student_factory(spec, data, pretrained=pretrained, trust=trust)()


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and where it came from.

    Attributes:
        model: with its normalisation.
        normalisation: where its mean and standard deviation come from, in a few words.
        folder: of the run that trained it; ``None`` where there is none.
        spec: what builds its network, as in a configuration.
        file: its weights; ``None`` for published ones and for objects.
        task: what it is for, where its file or the network itself tells; otherwise what the data's targets are for.
        classes: the names of what it has outputs for, where its file tells.
    """

    model: Tapped
    normalisation: str
    folder: Path | None = None
    spec: str = ""
    file: Path | None = None
    task: str | None = None
    classes: tuple[str, ...] = ()

    @property
    def guessed(self) -> bool:
        """Whether the normalisation is the data's own, since nothing says which the network was trained with."""
        normalises = bool((self.model.mean != 0).any() or (self.model.std != 1).any())  # tokens are not, say
        return normalises and self.normalisation.endswith(UNRECORDED)


def open_teachers(
    config: Config, data: Data, teachers: Sequence[str | nn.Module] | None = None, trust: Trust | None = None
) -> tuple[TrainedModel, ...]:
    """The teachers of a configuration, or those that are handed over, by name or as networks.

    Raises:
        TutelageError: as ``open_trained``, or a normalisation is given and there is no teacher to use it.
    """
    given = (config.teacher_mean, config.teacher_std) if config.teacher_mean else None
    each = config.teacher if teachers is None else teachers
    opened = tuple(
        open_trained(one, data, given, trust) if isinstance(one, str) else _bare(one, data, given) for one in each
    )
    if given is not None:
        check_normalisation_used("teacher_mean and teacher_std", opened)
    return opened


def check_normalisation_used(fields: str, opened: Sequence[TrainedModel]) -> None:
    """Refuse a normalisation, given in these fields, that none of these networks has a use for."""
    if all(one.normalisation != STATED for one in opened):
        have = "the weights record their own" if opened else "there is no teacher"
        raise TutelageError(f"{fields} have no use here: {have}; leave them out")


def _bare(module: nn.Module, data: Data, mean_std: MeanStd | None) -> TrainedModel:
    """A network that was handed over in Python: wrapped with its own normalisation, or bare."""
    if isinstance(module, Tapped):
        return TrainedModel(module, "its own")
    chosen, origin = _normalisation(Header(), BuiltModel(module), data, mean_std)
    return TrainedModel(wrap_network(module, *chosen), origin)


@default_settings()
def open_model(text: str, data: Data, trust: Trust | None = None) -> Tapped:
    """A trained network: a run's folder, ``MODEL@WEIGHTS``, or a ``timm/`` or ``hf/`` name with published weights.

    It is in eval mode.

    Args:
        text: which.
        data: the images that it will be given.
        trust: whose code may be imported (``check_trusted``). Unless given, that of the MODEL in ``text``, and not that
            of a network which only the file in a folder names.

    Raises:
        TutelageError: when it is none of these, runs code that is not trusted, or was trained for another number of
            classes.
    """
    opened = open_trained(text, data, trust=trust)
    check_classes(text, opened.classes, data)
    return opened.model


@default_settings()
def open_trained(text: str, data: Data, mean_std: MeanStd | None = None, trust: Trust | None = None) -> TrainedModel:
    """As ``open_model``, with its origin, and for whatever classes and size of inputs its file records.

    Args:
        text: see ``open_model``.
        data: what it is to be given: its modality, and what the file does not record.
        mean_std: normalisation for weights that do not record their own, each of length 1 or C. Without it they get
            that of their published weights, or else that of the data's training part.
        trust: see ``open_model``.

    Raises:
        TutelageError: it is no trained network, runs code that is not trusted, takes other inputs, or ``mean_std`` is
            for another number of channels.
    """
    trust = typed_specs(text) if trust is None else trust
    located = locate(text)
    spec, file, header = located or (text, None, Header())
    _check_inputs(text, header.shape, data)
    classes = len(header.classes) or data.num_classes
    if file is not None and not classes:
        raise TutelageError(
            f"{text} does not record its classes and {data.name} has none: no sample has a label; name the classes, by "
            "a test part in folders of classes or as classes=... of Data, or give the folder of the teacher's run"
        )
    built = make_model(
        spec,
        num_classes=classes,
        input_shape=header.shape or data.input_shape,
        modality=data.modality,
        trust=trust,
        pretrained=file is None,
        normalised=file is not None and (bool(header.mean) or mean_std is not None),
        named_in=str(file) if as_path(text).is_dir() else "the configuration",
    )
    module = built.module if file is None else load_student(file, built.module, data)
    chosen, origin = _normalisation(header, built, data, mean_std)
    own_task = task_of_network(module)
    task = header.task or (None if own_task is None else own_task.name)
    model = wrap_network(module, *chosen).eval()
    return TrainedModel(model, origin, run_folder(text), spec, file, task, tuple(header.classes))


def _normalisation(
    header: Header, built: BuiltModel, data: Data, mean_std: MeanStd | None
) -> tuple[tuple[Sequence[float], Sequence[float]], str]:
    """The mean and standard deviation to use, and where they come from."""
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
        return built.mean_std, "of the published weights"
    return data.mean_std, f"those of {data.name}: {UNRECORDED}"


def _check_inputs(text: str, shape: Sequence[int], data: Data) -> None:
    """Refuse inputs of another kind or other channels than those a network was trained on; warn of another size."""
    if not shape:
        return
    if len(shape) != len(data.input_shape):
        raise TutelageError(
            f"{text} was trained on inputs of shape {tuple(shape)} and the {data.modality.noun} of {data.name} have "
            f"shape {data.input_shape}; give it a network for {data.modality.noun}"
        )
    if len(shape) != 3:
        return
    (channels, *size), (ours, *own) = shape, data.input_shape
    if channels != ours:
        raise TutelageError(
            f"{text} was trained on images of {channels} channel{'s' * (channels > 1)} and those of {data.name} have "
            f"{ours}; give it images, or the images a network, of the same channels"
        )
    if size != own:
        before, now = (" x ".join(map(str, sides)) for sides in (size, own))
        warnings.warn(
            f"{text} was trained on images of {before} pixels and those of {data.name} have {now}: it may be far less "
            "accurate on them; folder: and hf: data can be resized with --image-size",
            TutelageWarning,
            stacklevel=4,
        )
