"""A network's results on a data set as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.data import Data, Split
from tutelage.errors import TutelageError, unknown
from tutelage.evaluation.cost import flops, latency, parameters
from tutelage.evaluation.metrics import (
    accuracy,
    agreement,
    brier,
    calibration_gap,
    ece,
    kl_to_teacher,
    macro_f1,
    memorised,
    nll,
    per_class_accuracy,
    per_class_f1,
    reliability,
    worst_class_accuracy,
    wrongly_labelled,
)
from tutelage.evaluation.predict import predict, predict_roles
from tutelage.evaluation.selective import RiskCoverage, commitment, reservation, risk_coverage
from tutelage.models.generator import Generator
from tutelage.models.surgery.abstain import ABSTAIN
from tutelage.models.tapped import Tapped

CURVE_POINTS = 101  # at most so many of a risk-coverage curve are kept


@default_settings()
def evaluate(
    model: nn.Module,
    data: Data,
    *,
    part: str = "test",
    device: torch.device | str = "cpu",
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Accuracy, calibration and, with a teacher, fidelity to it, on one part of a data set.

    Soft labels count as their largest class. A number that does not exist (the accuracy of a class without
    samples) is ``None``, so that the JSON is strict.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it must be on ``device`` already.
        data: the data set.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        device: where to compute.
        teacher: another network of the same classes, on the same device.

    Returns:
        ``samples`` (all of the part; those without a label count in the comparison with the teacher alone),
        ``accuracy``, ``per_class_accuracy`` (by class name), ``worst_class_accuracy``, ``per_class_f1`` (by class
        name), ``macro_f1``, ``nll``, ``brier``, ``ece``, ``calibration_gap``, ``aurc``, ``reliability`` (``count``,
        ``accuracy`` and ``confidence`` of 15 bins, ``None`` where one is empty) and ``risk_coverage`` (``coverage`` and
        ``risk`` at no more than 101 points, the first and the last among them); with a teacher also ``agreement``,
        ``kl_to_teacher`` and ``teacher_accuracy``. Of a network that can abstain also ``reservation``, the mean
        probability of it, and ``aurc_by_abstention`` and ``risk_coverage_by_abstention``, where samples are ranked by
        that probability.

    Raises:
        TutelageError: there is no such part, or a network has another number of classes than the data.
    """
    if part not in data.parts:
        raise unknown("part", part, data.parts)
    split = data.parts[part]
    logits = logits_of(model, "network", data, split, device)
    labels = _hard(split.labels).to(logits.device)
    bins, curve = reliability(logits, labels), risk_coverage(logits, labels)
    result: dict[str, Any] = {
        "samples": len(split),
        "accuracy": _number(accuracy(logits, labels)),
        "per_class_accuracy": _by_class(data, per_class_accuracy(logits, labels)),
        "worst_class_accuracy": _number(worst_class_accuracy(logits, labels)),
        "per_class_f1": _by_class(data, per_class_f1(logits, labels)),
        "macro_f1": _number(macro_f1(logits, labels)),
        "nll": _number(nll(logits, labels)),
        "brier": _number(brier(logits, labels)),
        "ece": _number(ece(logits, labels)),
        "calibration_gap": _number(calibration_gap(logits, labels)),
        "aurc": _number(curve.area),
        "reliability": {
            "count": bins.count.tolist(),
            "accuracy": _numbers(bins.accuracy),
            "confidence": _numbers(bins.confidence),
        },
        "risk_coverage": _thinned(curve),
    }
    if isinstance(model, Tapped) and ABSTAIN in model.taps:
        abstain = predict_roles(model, split, (ABSTAIN,), device=device)
        curve = risk_coverage(logits, labels, commitment(logits, abstain))
        result["reservation"] = _number(reservation(logits, abstain).mean())
        result["aurc_by_abstention"] = _number(curve.area)
        result["risk_coverage_by_abstention"] = _thinned(curve)
    if teacher is not None:
        answers = logits_of(teacher, "teacher", data, split, device)
        result["agreement"] = _number(agreement(logits, answers))
        result["kl_to_teacher"] = _number(kl_to_teacher(logits, answers))
        result["teacher_accuracy"] = _number(accuracy(answers, labels))
    return result


@default_settings()
def memorisation(model: nn.Module, data: Data, device: torch.device | str = "cpu") -> dict[str, Any]:
    """How much of the wrong labels a network has learnt by heart, on the training part without augmentation.

    Returns:
        ``wrong_labels`` (how many there are), ``memorised`` (the share of them the network predicts, ``None``
        where there is none), ``train_accuracy_clean`` and ``train_accuracy_given``.

    Raises:
        TutelageError: the network has another number of classes than the data.
    """
    logits = logits_of(model, "network", data, data.train, device)
    given = _hard(data.train.labels).to(logits.device)
    clean = data.train.clean_labels.to(logits.device)
    return {
        "wrong_labels": int(wrongly_labelled(given, clean).sum()),
        "memorised": _number(memorised(logits, given, clean)),
        "train_accuracy_clean": _number(accuracy(logits, clean)),
        "train_accuracy_given": _number(accuracy(logits, given)),
    }


@default_settings()
def cost_of(model: nn.Module, data: Data, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A network's parameters, and the operations and time of a forward pass of one image of this data set.

    A generator's pass makes one image.

    Returns:
        ``parameters``, ``flops`` (a multiply-add is 2), ``latency_ms`` (the median) and
        ``latency_ms_quartiles`` (the first and the third).
    """
    shape = (model.latent,) if isinstance(model, Generator) else data.image_shape
    taken = latency(model, shape, device=device)
    return {
        "parameters": parameters(model),
        "flops": flops(model, shape, device),
        "latency_ms": taken.median,
        "latency_ms_quartiles": [taken.first_quartile, taken.third_quartile],
    }


def logits_of(model: nn.Module, who: str, data: Data, split: Split, device: torch.device | str) -> Tensor:
    """A network's logits for a part; ``who`` it is, for the error where it has another number of classes."""
    logits = predict(model, split, device=device)
    if logits.shape[1] != data.num_classes:
        raise TutelageError(
            f"the {who} gives {logits.shape[1]} logits, but {data.name} has {data.num_classes} classes: "
            f"give its last layer {data.num_classes} outputs, or use the data it was made for"
        )
    return logits


def _hard(labels: Tensor) -> Tensor:
    return labels if labels.ndim == 1 else labels.argmax(1)


def _thinned(curve: RiskCoverage) -> dict[str, list[float | None]]:
    """A curve at no more than ``CURVE_POINTS`` coverages."""
    shown = _spread(len(curve.risk), CURVE_POINTS)
    return {"coverage": _numbers(curve.coverage[shown]), "risk": _numbers(curve.risk[shown])}


def _spread(size: int, count: int) -> list[int]:
    """At most ``count`` of the places 0 .. size - 1, evenly, the first and the last among them."""
    if size <= count:
        return list(range(size))
    return [round(place * (size - 1) / (count - 1)) for place in range(count)]


def _by_class(data: Data, values: Tensor) -> dict[str, float | None]:
    return dict(zip(data.classes, _numbers(values), strict=True))


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: Tensor | float) -> float | None:
    """A plain number; ``None`` for NaN, which JSON does not have."""
    number = float(value)
    return None if math.isnan(number) else number
