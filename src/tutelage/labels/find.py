"""The function ``label_issues``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tutelage.api import Student, train
from tutelage.config import Config
from tutelage.data import Data, open_data
from tutelage.data.configured import load_data
from tutelage.data.open import spec_from_path
from tutelage.files import as_path
from tutelage.labels.issues import LabelIssues
from tutelage.methods.clean_labels.estimate import By, Repair
from tutelage.methods.clean_labels.evidence import FURTHER_FITS
from tutelage.runs.execute import Result
from tutelage.training.loop import Record

CLEANED, PLAIN = "cleaned", "plain"
"""The folders of the two runs in the output folder."""


def label_issues(
    data: str | os.PathLike[str] | Data | object,
    model: Student = "resnet8",
    *,
    by: By = "posterior",
    folds: int = 5,
    repair: Repair = "soften",
    compare: bool = True,
    out: str | os.PathLike[str] | None = None,
    report: Callable[[Record], None] | None = None,
    **config: Any,
) -> LabelIssues:
    """Find the training labels that look wrong, without a teacher, by the method ``clean_labels``.

    It trains ``folds`` networks for the evidence, one network on the repaired labels and, to compare, one on the labels
    as they are. All training samples are examined (``validation`` is 0 unless given), and no test sample.

    Args:
        data: as ``tutelage.train`` takes it.
        model: the network, as ``tutelage.train`` takes it. A network that recognises the classes well finds more.
        by, folds, repair: the settings of ``clean_labels``.
        compare: whether to train a network with all labels too.
        out: a folder. The runs are saved in it, ``cleaned`` and ``plain``, so that the same call resumes;
            ``tutelage.labels.save_issues`` writes the results into it.
        report: called with one record per epoch, which has the number of its fit.
        config: any other field of ``Config``: ``epochs``, ``seed``, ``lr``, ``noise``, ...

    Raises:
        TutelageError: for anything that you can correct.
    """
    fields = {"validation": 0.0, **config}
    if not isinstance(data, str | os.PathLike | Data):
        data = open_data(data, test=fields.pop("test", None))
    folder = None if out is None else as_path(out)

    def run(name: str, fits_before: int, **method: Any) -> Result:
        return train(
            model,
            data,
            out=None if folder is None else folder / name,
            report=report and (lambda record: report({**record, "fit": record["fit"] + fits_before})),
            **fields,
            **method,
        )

    cleaned = run(CLEANED, 0, method="clean_labels", settings={"by": by, "folds": folds, "repair": repair})
    plain = run(PLAIN, folds + 1 + FURTHER_FITS.get(by, 0)) if compare else None
    known = {name: value for name, value in fields.items() if name in Config.model_fields}
    opened = data if isinstance(data, Data) else load_data(Config(data=spec_from_path(data), **known))
    accuracies = None if plain is None else _accuracy(plain), _accuracy(cleaned)
    return LabelIssues.of(opened, cleaned.samples, cleaned.metrics["notes"], accuracies, repair)


def _accuracy(result: Result) -> float | None:
    accuracy: float | None = result.metrics["test"]["accuracy"]
    return accuracy
