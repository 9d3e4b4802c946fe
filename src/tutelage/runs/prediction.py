"""The classes of image files, by a trained network."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.config import Config, Hardware, read_config
from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data
from tutelage.data.decode import Encoded, ImageFiles, decodes, read_headers
from tutelage.data.formats.folder import SUFFIXES
from tutelage.data.split import Split
from tutelage.data.whole_images import WholeImages
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation.predict import predict
from tutelage.files import as_path, atomic_write
from tutelage.models.external.common import MeanStd
from tutelage.models.weights import read_state
from tutelage.runs.folder import CONFIG
from tutelage.runs.locate import locate, run_folder
from tutelage.runs.models import DEFAULT_TASK, open_trained
from tutelage.text import csv_text
from tutelage.training.hardware import resolve
from tutelage.trust import Trust, typed_specs

PUBLISHED_SIZE = 224
"""The image size of published weights, whose header is not ours; ``image_size`` sets another."""


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of image files.

    Attributes:
        files: the N files.
        classes: the K class names; numbers if the weights record none.
        probabilities: (N, K) float32, the softmax of the logits, calibrated if the weights record a calibration.
        unreadable: the files that cannot be decoded and were left out.
        in_set: (N, K) bool, whether a class is in the prediction set; ``None`` without a calibration.
        coverage: the probability, at least, that a set contains the true class; ``None`` without a calibration.
    """

    files: tuple[Path, ...]
    classes: tuple[str, ...]
    probabilities: Tensor
    unreadable: tuple[Path, ...] = ()
    in_set: Tensor | None = None
    coverage: float | None = None

    def rows(self, top: int = 1) -> Iterator[dict[str, Any]]:
        """For each file its name and the ``top`` most probable classes with their probabilities, best first.

        With a calibration also ``set``, the classes of the prediction set, the most probable one first.
        """
        values, numbers = self.probabilities.topk(min(top, len(self.classes)), dim=1)
        for row, (file, shares, columns) in enumerate(zip(self.files, values.tolist(), numbers.tolist(), strict=True)):
            best = {"file": str(file), "class": self.classes[columns[0]], "probability": shares[0]}
            others = enumerate(zip(columns[1:], shares[1:], strict=True), 2)
            ranked = {
                name: value
                for rank, (column, share) in others
                for name, value in ((f"class_{rank}", self.classes[column]), (f"probability_{rank}", share))
            }
            yield best | ranked | ({} if self.in_set is None else {"set": self._set(row, self.in_set)})

    def _set(self, row: int, in_set: Tensor) -> list[str]:
        ranking = self.probabilities[row].argsort(descending=True).tolist()
        return [self.classes[column] for column in ranking if in_set[row, column]]

    def save(self, file: str | os.PathLike[str], top: int = 1) -> None:
        """Write ``rows`` as a CSV file; a ``'`` precedes names that a spreadsheet would read as formulas.

        The classes of a set are separated by ``|``.
        """
        rows = [{name: _csv_cell(value) for name, value in row.items()} for row in self.rows(top)]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(as_path(file), stream.getvalue().encode())


def _csv_cell(value: str | float | list[str]) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return csv_text(value if isinstance(value, str) else "|".join(value))


def predict_images(
    run: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    mean_std: MeanStd | None = None,
    skip_bad: bool = False,
    device: str = "auto",
    workers: int = 2,
    trust: Trust | None = None,
) -> Predictions:
    """Predict the classes of image files.

    Images are scaled and cut to the size that the network was trained on, and converted to its channels.

    Args:
        run: the folder of a finished run, ``MODEL@WEIGHTS``, ``timm/NAME`` or ``hf/NAME``.
        images: image files and folders, which are searched with their sub-folders.
        classes: the class names, for weights that record none.
        image_size: pixels per side; by default the size that the weights record, or 224 if they record none.
        mean_std: mean and standard deviation of each channel for weights that record none.
        skip_bad: leave out images that cannot be decoded.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        workers: processes that decode images.
        trust: whose code may be imported, as in ``open_model``.

    Raises:
        TutelageError: there is no such network or image, an image cannot be decoded, or the network does not classify
            images.
    """
    name = os.fspath(run)
    location = locate(name)
    shape = location[2].shape if location else ()
    if shape and len(shape) != 3:
        raise TutelageError(
            f"{name} was trained on inputs of shape {shape}, which are no images; use a network for images"
        )
    if location and not shape and image_size is None:
        warnings.warn(
            f"{name} records no image size, so images are scaled to {PUBLISHED_SIZE} pixels; give the size that it was "
            "trained on by --image-size (image_size=...)",
            TutelageWarning,
            stacklevel=2,
        )
    channels, height, width = shape or (_channels(location[1]) if location else 3, PUBLISHED_SIZE, PUBLISHED_SIZE)
    size = (height, width) if image_size is None else (image_size, image_size)
    files = _ListedFiles(tuple(_image_files(images)))
    readable = list(range(len(files)))
    if skip_bad:
        readable = [number for number in readable if decodes(files, number, image_size=size[0])]
    if not readable:
        raise TutelageError(f"none of the {len(files)} images can be read, first {files.name(0)}; check the files")
    listed = _ListedFiles(tuple(files[number] for number in readable))
    pixels = _as_evaluated(name, listed, size, channels)
    recorded = location[2].classes if location else []
    if location and not recorded and not classes:
        raise TutelageError(f"{name} records no class names; give them, in order, by --classes a,b,c (classes=[...])")
    split = Split.of(pixels, torch.full((len(listed),), UNLABELLED))
    data = Data("the images", tuple(recorded or classes), split, split)
    network = open_trained(name, data, mean_std, typed_specs(name) if trust is None else trust)
    if (network.task or DEFAULT_TASK) != DEFAULT_TASK:
        raise TutelageError(f"{name} is a network for {network.task}, and predict is for {DEFAULT_TASK}; use another")
    if network.normalisation_is_assumed:
        warnings.warn(
            f"{name} records no normalization, so that of these images is used; give the one it was trained with by "
            "--mean and --std (mean_std=...)",
            TutelageWarning,
            stacklevel=2,
        )
    hardware = resolve(Hardware(device=device))
    logits = predict(network.model.to(hardware.device), split, device=hardware.device, batch_size=64, workers=workers)
    if logits.ndim != 2:
        raise TutelageError(f"{name} returns logits {tuple(logits.shape)}; predict needs one row (classes) per image")
    calibration = network.calibration
    probabilities = (logits.softmax(1) if calibration is None else calibration.probabilities(logits)).cpu()
    names = data.classes or tuple(str(number) for number in range(probabilities.shape[1]))
    unreadable = tuple(files[number] for number in range(len(files)) if number not in {*readable})
    in_set, coverage = (None, None) if calibration is None else (calibration.in_set(logits).cpu(), calibration.coverage)
    return Predictions(listed.paths, names, probabilities, unreadable, in_set, coverage)


def _channels(file: Path) -> int:
    """The channels of the images of a network whose weights do not record them: those of its first convolution."""
    kernels = (value for value in read_state(file)[0].values() if value.ndim == 4)
    return 1 if (kernel := next(kernels, None)) is not None and kernel.shape[1] == 1 else 3


@dataclass(frozen=True)
class _ListedFiles:
    """Encoded images by their paths."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def fingerprint(self, index: int) -> str | None:
        return None


def _image_files(images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files among these paths, and the images in the folders among them, sorted within each folder."""
    files: list[Path] = []
    for path in map(as_path, [images] if isinstance(images, str | os.PathLike) else images):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise TutelageError(f"the folder {path} has no image ({', '.join(sorted(SUFFIXES))}); name another")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise TutelageError(f"there is no image or folder {path}; check the path")
    if not files:
        raise TutelageError("no image is given; name image files or folders")
    return files


def _as_evaluated(run: str, files: Encoded, size: tuple[int, int], channels: int) -> ImageFiles | WholeImages:
    """The images, cut as those of the run's evaluation were; of other networks, to the shorter side."""
    folder = run_folder(run)
    fields = read_config(folder / CONFIG) if folder is not None else {}
    if size[0] == size[1] and Config(augment=fields.get("augment", True)).reads_whole_images:
        sizes = torch.tensor([header.size for header in read_headers(files)])
        return WholeImages(files, size, channels, sizes)
    return ImageFiles(files, size, channels, resize=size[0] == size[1])
