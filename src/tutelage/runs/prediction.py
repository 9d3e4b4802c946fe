"""The classes of image files, by a trained network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.evaluation.class_probabilities import ClassProbabilities
from tutelage.models.external.common import MeanStd
from tutelage.runs.models import DEFAULT_TASK
from tutelage.runs.prediction_inputs import Paths, open_inputs
from tutelage.runs.tables import save_table
from tutelage.trust import Trust


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
        listed = ClassProbabilities(self.classes, self.probabilities, self.in_set).rows(top)
        for file, row in zip(self.files, listed, strict=True):
            yield {"file": str(file), **row}

    def save(self, file: str | os.PathLike[str], top: int = 1) -> None:
        """Write ``rows`` as a CSV file; a ``'`` precedes names that a spreadsheet would read as formulas.

        The classes of a set are separated by ``|``.

        Raises:
            TutelageError: the file exists.
        """
        save_table(file, [*self.rows(top)])


def predict_images(
    run: str | os.PathLike[str],
    images: Paths,
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
    opened = open_inputs(
        run,
        images,
        classes=classes,
        image_size=image_size,
        mean_std=mean_std,
        skip_bad=skip_bad,
        device=device,
        trust=trust,
    )
    if opened.task.name != DEFAULT_TASK:
        raise TutelageError(
            f"{os.fspath(run)} is a network for {opened.task.name}, and predict_images is for {DEFAULT_TASK}; use "
            "predict_files"
        )
    inputs, calibration = opened.inputs, opened.network.calibration
    logits = opened.request(inputs, workers=workers, top=1).logits()
    predicted = ClassProbabilities.of(logits, opened.classes, calibration)
    return Predictions(
        tuple(map(Path, inputs.names)),
        predicted.classes,
        predicted.probabilities,
        inputs.unreadable,
        predicted.in_set,
        None if calibration is None else calibration.coverage,
    )
