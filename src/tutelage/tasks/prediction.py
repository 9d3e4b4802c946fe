"""What a task predicts for samples without labels, as it is written into tables and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.data.inputs import Inputs
from tutelage.data.inputs.images import centred, image_inputs, listed_images, whole
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import predict
from tutelage.models.calibration import Calibration

BATCH = 64  # samples in a forward pass


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be predicted, and by which network.

    Attributes:
        model: in its modality's inputs, on ``device`` already.
        inputs: so many that their outputs fit into memory.
        classes: the names of classes, labels, quantities or symbols.
        device: where to compute.
        workers: processes that read files.
        top: how many classes to list, if they are ranked.
        calibration: of the network.
    """

    model: nn.Module
    inputs: Inputs
    classes: Sequence[str]
    device: torch.device | str = "cpu"
    workers: int = 2
    top: int = 1
    calibration: Calibration | None = None

    def logits(self) -> Tensor:
        """The network's outputs for all inputs, (N, ...) float32 on the device."""
        return predict(self.model, self.inputs.split, device=self.device, batch_size=BATCH, workers=self.workers)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one input.

    Attributes:
        rows: the lines of the table, plain values by column; several for several objects, or none.
        content: of its file, if the task writes one for each input.
    """

    rows: Sequence[Mapping[str, Any]]
    content: bytes | None = None


class Predicting:
    """The part of a task that predicts for files: how they are read, and how predictions are written."""

    ranked: ClassVar[bool] = False
    """Whether predictions list the most probable classes, so that their number can be chosen."""

    prediction_suffix: ClassVar[str] = ""
    """The suffix of the file of each prediction, such as ``.png``; empty if predictions have no files."""

    prediction_columns: ClassVar[tuple[str, ...]] = ()
    """The columns of a table without a prediction, if there may be none for an input."""

    joint_name: ClassVar[str] = ""
    """The name of the file of all predictions (``joint_file``); empty if there is none."""

    @property
    def name(self) -> str:
        """The name of the task, which is the name of its module."""
        return type(self).__module__.rpartition(".")[2]

    def inputs(self, paths: Sequence[Path], shape: tuple[int, ...], *, random_boxes: bool, skip_bad: bool) -> Inputs:
        """The files and folders that a user names as inputs; by default images, scaled and cut as in evaluation.

        Args:
            paths: of the user.
            shape: of one input of the network.
            random_boxes: whether the network was trained on random boxes of whole images.
            skip_bad: leave out files that cannot be decoded.

        Raises:
            TutelageError: a path cannot be used.
        """
        return image_inputs(listed_images(paths), shape, whole if random_boxes else centred, skip_bad=skip_bad)

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The prediction for each input, in order.

        Raises:
            TutelageError: the task predicts nothing for a single sample.
        """
        raise TutelageError(
            f"{self.name} predicts nothing for a single sample; use tutelage evaluate, or a network for another task"
        )

    def row_text(self, row: Mapping[str, Any]) -> str:
        """A line of the table as the terminal prints it; nothing is printed if it is empty."""
        (_, name), *rest = row.items()
        texts = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in rest)
        return "  ".join((str(name), *texts))

    def joint_file(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """The content of the file of all predictions, from the lines of the table.

        Raises:
            TutelageError: there is none.
        """
        raise TutelageError(f"{self.name} has no file of all predictions")


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
