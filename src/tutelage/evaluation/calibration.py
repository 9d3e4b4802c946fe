"""Fitting a temperature and the threshold of prediction sets on held-out samples.

Pure functions of tensors, with the shapes and errors of ``metrics``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import brier, ece, nll, only_labelled
from tutelage.models.calibration import SCORES, Calibration, Sets

LOWEST, HIGHEST = 0.01, 100.0  # temperatures
_STEPS = 100


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T that minimises the mean negative log-likelihood of softmax(z / T), between 0.01 and 100.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2. With b = 1 / T the
    loss of a sample is log sum_k exp(b (z_k - z_y)), which is convex in b: Newton's method in float64, within bounds
    that each step narrows.

    Args:
        logits: (N, K).
        labels: (N,), of which -1 are left out.

    Returns:
        The temperature; ``None`` if there is no minimum between the bounds, because every sample is predicted
        correctly or the network does not do better than chance.
    """
    logits, labels = only_labelled(logits.double(), labels)
    margins = logits - logits.gather(1, labels[:, None])
    low, high, inverse = 1 / HIGHEST, 1 / LOWEST, 1.0
    if not len(labels) or _derivatives(margins, low)[0] >= 0 or _derivatives(margins, high)[0] <= 0:
        return None
    for _ in range(_STEPS):
        slope, curvature = _derivatives(margins, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else math.nan
        previous, inverse = inverse, newton if low <= newton <= high else math.sqrt(low * high)
        if abs(inverse - previous) <= 1e-12 * inverse:
            break
    return 1 / inverse


def _derivatives(margins: Tensor, inverse: float) -> tuple[float, float]:
    """The first and second derivative by b of mean log sum exp(b m): mean and variance of m under softmax(b m)."""
    probabilities = (inverse * margins).softmax(1)
    mean = (probabilities * margins).sum(1)
    variance = (probabilities * (margins - mean[:, None]).square()).sum(1)
    slope, curvature = torch.stack([mean.mean(), variance.mean()]).tolist()
    return slope, curvature


def conformal_threshold(scores: Tensor, coverage: float) -> float:
    """The threshold of split conformal prediction: the ceil((n + 1) coverage)-th smallest of n scores.

    For a new sample that is exchangeable with these n, P(score <= threshold) >= coverage, for every network and every
    distribution (Vovk, Gammerman, Shafer 2005; Angelopoulos, Bates 2021, theorem D.1).

    Args:
        scores: (n,), of the true classes of held-out samples.
        coverage: in (0, 1).

    Raises:
        TutelageError: n is too small for this coverage.
    """
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))
    if rank > len(scores):
        needed = math.ceil(round(coverage / (1 - coverage), 9))
        raise TutelageError(
            f"sets of coverage {coverage:g} need {needed} held-out samples with labels, and there are {len(scores)}; "
            "choose a lower coverage, or hold out more samples (--validation)"
        )
    return float(scores.sort().values[rank - 1])


def fit_calibration(logits: Tensor, labels: Tensor, *, coverage: float = 0.9, sets: Sets = "lac") -> Calibration:
    """Fit temperature and prediction sets on held-out samples that were not trained on.

    The temperature is 1 if ``fit_temperature`` finds none.

    Args:
        logits: (N, K).
        labels: (N,), of which -1 are left out.
        coverage: the probability, at least, that a set contains the true class.
        sets: ``lac``, which has the smallest sets on average, or ``aps``, whose sets are larger for difficult samples.

    Raises:
        TutelageError: a value is invalid, or there are too few samples.
    """
    labelled_logits, classes = only_labelled(logits, labels)
    calibration = Calibration(
        temperature=fit_temperature(logits, labels) or 1.0,
        coverage=coverage,
        sets=sets,
        threshold=0.0,
        samples=max(len(classes), 1),
    )
    scores = SCORES[sets](labelled_logits).gather(1, classes[:, None])[:, 0]
    fitted: Calibration = calibration.replace(threshold=conformal_threshold(scores, coverage))
    return fitted


def calibrated_metrics(logits: Tensor, labels: Tensor, calibration: Calibration) -> dict[str, Any]:
    """NLL, Brier score and ECE of the calibrated probabilities, and how the sets do: ``coverage``, ``set_size``.

    ``coverage`` is the share of labelled samples whose set contains the label, ``set_size`` the mean number of classes
    in a set.
    """
    logits, labels = only_labelled(logits, labels)
    scaled, members = logits / calibration.temperature, calibration.in_set(logits)
    return {
        "temperature": calibration.temperature,
        "nll": json_number(nll(scaled, labels)),
        "brier": json_number(brier(scaled, labels)),
        "ece": json_number(ece(scaled, labels)),
        "coverage": json_number(members.gather(1, labels[:, None]).float().mean()),
        "set_size": json_number(members.sum(1).float().mean()),
    }
