"""The most confident mistakes of a run's student on the test split."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.ambient import default_settings
from tutelage.config import Hardware
from tutelage.data import Data
from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.errors import TutelageError
from tutelage.evaluation.predict import class_logits
from tutelage.report.image import data_uri
from tutelage.runs.classes import with_classes
from tutelage.runs.models import DEFAULT_TASK, open_trained
from tutelage.runs.run_data import open_run_data
from tutelage.text import printable
from tutelage.training.hardware import resolve
from tutelage.trust import Trust, typed_specs

LISTED = 24
LONGEST_NAME = 400  # characters


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified test sample.

    Attributes:
        image: a data URI; empty if the sample is not an image.
        label: the given label.
        predicted: the predicted class.
        probability: of the predicted class, calibrated if the run is.
        label_probability: of the given label.
        name: the file, the text, or the number of the sample.
    """

    image: str
    label: str
    predicted: str
    probability: float
    label_probability: float
    name: str


@dataclass(frozen=True)
class Mistakes:
    """The most confident mistakes, and the number of all mistakes and of labelled samples."""

    listed: tuple[Mistake, ...]
    count: int
    samples: int


@default_settings()
def worst_mistakes(run: str, *, device: str = "auto", trust: Trust | None = None) -> Mistakes:
    """Predict the test split of a run's data, and return the mistakes with the most probable prediction.

    Raises:
        TutelageError: the data cannot be opened, or the run's task is not classification.
    """
    data = open_run_data(run)
    network = open_trained(run, data, trust=typed_specs(run) if trust is None else trust)
    task = network.task or data.targets.task
    if task != DEFAULT_TASK:
        raise TutelageError(f"mistakes are listed for {DEFAULT_TASK}, and this is {task}")
    model = network.model.to(resolve(Hardware(device=device)).device)
    data = with_classes(data, model, network.classes)
    logits = class_logits(model, "network", data, data.test, model.mean.device).cpu()
    calibration = network.calibration
    probabilities = logits.softmax(1) if calibration is None else calibration.probabilities(logits)
    labels = hard_labels(data.test.labels).cpu()
    predicted = logits.argmax(1)
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    labelled = labels != UNLABELLED
    wrong = (labelled & (predicted != labels)).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:LISTED].tolist()
    classes = [printable(name) for name in data.classes]
    listed = tuple(
        Mistake(
            data_uri(data.test, row),
            classes[int(labels[row])],
            classes[int(predicted[row])],
            float(confidence[row]),
            float(probabilities[row, labels[row]]),
            printable(_name(data, row)),
        )
        for row in worst
    )
    return Mistakes(listed, len(wrong), int(labelled.sum()))


def _name(data: Data, row: int) -> str:
    """The name of a test sample's file, its text (the beginning of a long one), or else its number."""
    index = int(data.test.index[row])
    name = data.test_files[index] if index < len(data.test_files) else f"sample {index}"
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
