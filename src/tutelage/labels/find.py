"""The function ``label_issues``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from tutelage.api import Student, train
from tutelage.config import Config, Hardware
from tutelage.data import Data, open_data
from tutelage.data.configured import load_data
from tutelage.data.open import spec_from_path
from tutelage.evaluation import predict
from tutelage.files import as_path
from tutelage.labels.features import as_features
from tutelage.labels.issues import LabelIssues
from tutelage.methods.clean_labels.estimate import By, Repair
from tutelage.methods.clean_labels.evidence import FURTHER_FITS
from tutelage.runs.execute import Result
from tutelage.training.hardware import resolve
from tutelage.training.loop import Record

CLEANED, PLAIN = "cleaned", "plain"
"""The folders of the two runs in the output folder."""

_OF_THE_DATA = {
    "noise", "imbalance", "per_class", "image_size", "test", "skip_bad", "augment", "views", "cache", "validation",
}  # fmt: skip
"""The fields that have been applied before features are computed."""


def label_issues(
    data: str | os.PathLike[str] | Data | object,
    model: Student | None = None,
    *,
    features: str | nn.Module | None = None,
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
    as they are. All training samples are examined (``validation`` is 0 unless given), and no sample of a test split,
    unless its samples were drawn from the training split because there was no other: these are judged by the network
    that was trained on the repaired labels of all others.

    Args:
        data: as ``tutelage.train`` takes it.
        model: the network, as ``tutelage.train`` takes it, by default ``resnet8``, or a linear classifier of
            ``features``. A network that recognises the classes well finds more.
        features: a trained network of any classes, see ``as_features``. Its features take the place of the inputs,
            which is faster than training networks and finds more where samples are few.
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
    known = {name: value for name, value in fields.items() if name in Config.model_fields}
    opened = data if isinstance(data, Data) else load_data(Config(data=spec_from_path(data), **known))
    if features is not None:
        hardware = Hardware(**{name: value for name, value in known.items() if name in Hardware.model_fields})
        vectors = as_features(opened, features, torch.device(resolve(hardware).device))
        issues = label_issues(
            vectors,
            model or partial(nn.Linear, vectors.input_shape[0], vectors.num_classes),
            by=by,
            folds=folds,
            repair=repair,
            compare=compare,
            out=out,
            report=report,
            **{name: value for name, value in fields.items() if opened is data or name not in _OF_THE_DATA},
        )
        return issues.of_samples(opened)
    folder = None if out is None else as_path(out)

    def run(name: str, fits_before: int, **method: Any) -> Result:
        return train(
            model or "resnet8",
            data,
            out=None if folder is None else folder / name,
            report=report and (lambda record: report({**record, "fit": record["fit"] + fits_before})),
            **fields,
            **method,
        )

    cleaned = run(CLEANED, 0, method="clean_labels", settings={"by": by, "folds": folds, "repair": repair})
    plain = run(PLAIN, folds + 1 + FURTHER_FITS.get(by, 0)) if compare else None
    accuracies = None if plain is None else _accuracy(plain), _accuracy(cleaned)
    issues = LabelIssues.of(opened, cleaned.samples, cleaned.metrics["notes"], accuracies, repair)
    if not opened.record or opened.record[-1].get("test_from") != "train":
        return issues  # another test split, or a condition changed the training labels alone
    logits = predict(cleaned.model, opened.test, device=cleaned.config.device, workers=cleaned.config.workers)
    return issues.with_test(logits.softmax(1).cpu())


def _accuracy(result: Result) -> float | None:
    accuracy: float | None = result.metrics["test"]["accuracy"]
    return accuracy
