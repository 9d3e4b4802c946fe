"""Opening a trained network together with the files for which it predicts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.config import Config, Hardware, read_config
from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data
from tutelage.data.inputs import Inputs
from tutelage.data.inputs.texts import SUFFIXES, text_inputs
from tutelage.data.split import Split
from tutelage.data.tokenizer import open_tokenizer
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import as_path
from tutelage.formats import FORMATS
from tutelage.models.external.common import MeanStd
from tutelage.models.weights import read_state
from tutelage.runs.folder import CONFIG
from tutelage.runs.header import Header
from tutelage.runs.locate import locate, run_folder
from tutelage.runs.models import DEFAULT_TASK, TrainedModel, open_trained
from tutelage.tasks import Task, find_task
from tutelage.tasks.prediction import Request
from tutelage.training.hardware import resolve
from tutelage.trust import Trust, typed_specs

HUB = "hf/"
PUBLISHED_SIZE = 224
"""The image size of published weights, whose header is not ours; ``image_size`` sets another."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Opened:
    """A network on its device and what it is to predict.

    Attributes:
        network: with its calibration.
        task: its task.
        inputs: all of them.
        classes: the names that the weights record or the user gave; empty if there are none.
        device: of the network.
    """

    network: TrainedModel
    task: Task
    inputs: Inputs
    classes: tuple[str, ...]
    device: torch.device | str

    def request(self, inputs: Inputs, *, workers: int, top: int) -> Request:
        """The request for some of the inputs."""
        return Request(
            self.network.model, inputs, self.classes, self.device, workers, top, calibration=self.network.calibration
        )


def open_inputs(
    run: str | os.PathLike[str],
    paths: Paths,
    *,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    mean_std: MeanStd | None = None,
    skip_bad: bool = False,
    tokenizer: str | None = None,
    device: str = "auto",
    trust: Trust | None = None,
) -> Opened:
    """Open a trained network, and list the files and folders as its task reads them.

    Args:
        run: the folder of a finished run, ``MODEL@WEIGHTS``, ``timm/NAME`` or ``hf/NAME``.
        paths: image files and folders, a COCO file for a detector, text files, or folders of videos.
        classes: the class names, for weights that record none.
        image_size: pixels per side; by default the size that the weights record, or 224 if they record none.
        mean_std: mean and standard deviation of each channel for weights that record none.
        skip_bad: leave out images that cannot be decoded.
        tokenizer: a file, a folder or a name of the hub, for a network for texts; by default that of the run's data, or
            that of ``hf/NAME`` for ``.txt`` and ``.tsv`` files.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        trust: whose code may be imported, as in ``open_model``.

    Raises:
        TutelageError: there is no such network or file, or the network is not for such files.
    """
    name = os.fspath(run)
    files = [as_path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    location = locate(name)
    header = location[2] if location else Header()
    trust = typed_specs(name) if trust is None else trust
    if location and not header.classes and not classes:
        raise TutelageError(f"{name} records no class names; give them, in order, by --classes a,b,c (classes=[...])")
    of_hub = location is None and name.startswith(HUB)
    if of_hub and all(file.suffix.lower() in SUFFIXES for file in files):
        tokenizer = tokenizer or name.removeprefix(HUB)
    if header.encoding or (of_hub and tokenizer):
        length = header.shape[0] if header.encoding else None
        inputs = text_inputs(files, open_tokenizer(tokenizer or _tokenizer_of(name)), length)
        network = open_trained(name, _data(inputs.split, header, classes), mean_std, trust)
        task = find_task(network.task or DEFAULT_TASK)
    else:
        if tokenizer:
            raise TutelageError(f"the tokenizer {tokenizer} is for texts, and {name} is no network for texts")
        shape = _image_shape(name, location[1] if location else None, header, image_size)
        blank = Split.of(torch.zeros(1, *shape[1:], shape[0], dtype=torch.uint8), torch.tensor([UNLABELLED]))
        network = open_trained(name, _data(blank, header, classes), mean_std, trust)
        task = find_task(network.task or DEFAULT_TASK)
        inputs = task.inputs(files, shape, random_boxes=_reads_random_boxes(name), skip_bad=skip_bad)
        if network.normalisation_is_assumed:
            network = open_trained(name, _data(inputs.split, header, classes), mean_std, trust)
            warnings.warn(
                f"{name} records no normalization, so that of these images is used; give the one it was trained with "
                "by --mean and --std (mean_std=...)",
                TutelageWarning,
                stacklevel=3,
            )
    target = resolve(Hardware(device=device)).device
    network.model.to(target)
    return Opened(network, task, inputs, tuple(header.classes or classes or network.classes), target)


def _data(split: Split, header: Header, classes: Sequence[str]) -> Data:
    """The inputs as a data set, for opening a network."""
    return Data(f"the {split.modality.noun}", tuple(header.classes or classes), split, split)


def _tokenizer_of(run: str) -> str:
    """The tokenizer of the data of a run, as ``open_tokenizer`` takes it.

    Raises:
        TutelageError: it is unknown.
    """
    folder = run_folder(run)
    data = str(read_config(folder / CONFIG).get("data", "")) if folder is not None else ""
    kind, _, argument = data.partition(":")
    form = FORMATS.get(kind)
    if form is None or not argument:
        raise TutelageError(f"{run} does not record its tokenizer; name it: --tokenizer FILE|FOLDER|NAME")
    if form.argument != ":FOLDER":
        return argument.rpartition("@")[2]
    if not as_path(argument).is_dir():
        raise TutelageError(f"the tokenizer of {run} was in {argument}, which is gone; name it: --tokenizer FILE")
    return argument


def _image_shape(run: str, file: Path | None, header: Header, image_size: int | None) -> tuple[int, ...]:
    """The shape (C, H, W) of the network's images."""
    if header.shape and len(header.shape) != 3:
        raise TutelageError(
            f"{run} was trained on inputs of shape {header.shape}, which are neither images nor texts; predict in "
            "Python, with open_model"
        )
    if file is not None and not header.shape and image_size is None:
        warnings.warn(
            f"{run} records no image size, so images are scaled to {PUBLISHED_SIZE} pixels; give the size that it was "
            "trained on by --image-size (image_size=...)",
            TutelageWarning,
            stacklevel=4,
        )
    channels = _channels(file) if file is not None else 3
    shape = header.shape or (channels, PUBLISHED_SIZE, PUBLISHED_SIZE)
    return shape if image_size is None else (shape[0], image_size, image_size)


def _channels(file: Path) -> int:
    """The channels of the images of a network whose weights do not record them: those of its first convolution."""
    kernels = (value for value in read_state(file)[0].values() if value.ndim == 4)
    return 1 if (kernel := next(kernels, None)) is not None and kernel.shape[1] == 1 else 3


def _reads_random_boxes(run: str) -> bool:
    """Whether a run was trained on random boxes of whole images."""
    folder = run_folder(run)
    fields = read_config(folder / CONFIG) if folder is not None else {}
    return Config(augment=fields.get("augment", True)).reads_whole_images
