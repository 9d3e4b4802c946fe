"""Temperature scaling and conformal sets against closed forms, grid searches, plain loops and their guarantee."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.evaluation.calibration import (
    calibrated_metrics,
    conformal_threshold,
    fit_calibration,
    fit_temperature,
)
from tutelage.models.calibration import Calibration, aps_scores, lac_scores

Refused = Callable[..., Any]


def drawn(samples: int, classes: int, seed: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


# --- temperature


@pytest.mark.parametrize("seed", range(5))
def test_temperature_equals_a_grid_search_in_float64(seed: int) -> None:
    logits, labels = drawn(300, 5, seed, temperature=0.5 + seed)
    grid = torch.linspace(0.3, 12, 2001, dtype=torch.float64)
    losses = torch.stack([F.cross_entropy(logits.double() / value, labels) for value in grid])
    fitted = fit_temperature(logits, labels)
    assert fitted is not None
    assert fitted == pytest.approx(float(grid[losses.argmin()]), abs=float(grid[1] - grid[0]))
    assert float(F.cross_entropy(logits.double() / fitted, labels)) <= float(losses.min()) + 1e-12


def test_temperature_of_two_classes_has_a_closed_form() -> None:
    """A margin of 2 is right for 3 of 4 samples: sigmoid(2 / T) = 3 / 4."""
    logits = torch.tensor([[2.0, 0.0]]).expand(4, 2)
    fitted = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert fitted == pytest.approx(2 / math.log(3), rel=1e-12)


def test_temperature_is_that_of_the_labels_and_scales_with_the_logits() -> None:
    logits, labels = drawn(40_000, 10, 0, temperature=2.0)
    fitted = fit_temperature(logits, labels)
    assert fitted is not None
    assert fitted == pytest.approx(2.0, rel=0.03)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fitted, rel=1e-6)
    assert fit_temperature(logits + 7, labels) == pytest.approx(fitted, rel=1e-5)


def test_unlabelled_samples_do_not_count() -> None:
    logits, labels = drawn(50, 4, 1)
    both = torch.cat([logits, torch.randn(9, 4)]), torch.cat([labels, torch.full((9,), -1)])
    assert fit_temperature(*both) == fit_temperature(logits, labels)


def test_no_temperature_without_a_minimum() -> None:
    logits, _ = drawn(50, 4, 2)
    assert fit_temperature(logits, logits.argmax(1)) is None  # the smaller the better
    assert fit_temperature(logits, logits.argmin(1)) is None  # the larger the better
    assert fit_temperature(logits[:0], torch.zeros(0, dtype=torch.int64)) is None
    assert fit_calibration(logits, logits.argmax(1)).temperature == 1


# --- scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_plain_loops(seed: int) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    lac, aps = lac_scores(logits), aps_scores(logits)
    for row, values in enumerate(logits.tolist()):
        total = sum(math.exp(value) for value in values)
        probabilities = [math.exp(value) / total for value in values]
        for k, p in enumerate(probabilities):
            assert float(lac[row, k]) == pytest.approx(-math.log(p), rel=1e-12)
            assert float(aps[row, k]) == pytest.approx(sum(q for q in probabilities if q >= p), rel=1e-12)


def test_scores_of_very_confident_networks_are_finite_and_distinct() -> None:
    scores = lac_scores(torch.tensor([[0.0, -40.0, -41.0]]))
    assert scores.isfinite().all()
    assert scores[0, 2] - scores[0, 1] == pytest.approx(1.0, abs=1e-4)


# --- threshold


def test_threshold_is_the_finite_sample_quantile(refused: Refused) -> None:
    scores = torch.randperm(19, generator=torch.Generator().manual_seed(0)).double() + 1  # 1 .. 19
    assert conformal_threshold(scores, 0.9) == 18  # ceil(20 * 0.9)
    assert conformal_threshold(scores, 0.95) == 19
    assert conformal_threshold(scores, 0.5) == 10
    assert conformal_threshold(scores, 0.51) == 11
    with refused("coverage 0.96 need 24 held-out samples", "there are 19", "lower coverage"):
        conformal_threshold(scores, 0.96)


@pytest.mark.parametrize("sets", ["lac", "aps"])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_sets_cover_exchangeable_samples(sets: Any, coverage: float) -> None:
    """Over many draws of 60 held-out and 60 new samples, whatever the logits: at least the coverage, not far above."""
    repeats, size = 300, 60
    covered = []
    for seed in range(repeats):
        logits, labels = drawn(2 * size, 6, seed, temperature=3.0)  # the network is far too confident
        calibration = fit_calibration(logits[:size], labels[:size], coverage=coverage, sets=sets)
        covered.append(calibration.in_set(logits[size:]).gather(1, labels[size:, None]).float().mean())
    mean = float(torch.stack(covered).mean())
    error = 4 * math.sqrt(2 * coverage * (1 - coverage) / (repeats * size))  # twice: the threshold varies, too
    assert mean >= coverage - error
    if sets == "lac" and coverage > 0.5:  # where the most probable class is in the set anyway
        assert mean <= coverage + 1 / (size + 1) + error


def test_sets_are_never_empty_and_contain_the_more_probable_classes() -> None:
    logits, labels = drawn(200, 6, 4)
    for sets in ("lac", "aps"):
        calibration = fit_calibration(logits, labels, coverage=0.3, sets=sets)  # type: ignore[arg-type]
        members = calibration.in_set(logits)
        assert members.any(1).all()
        smallest_inside = logits.where(members, torch.inf).amin(1)
        largest_outside = logits.where(~members, -torch.inf).amax(1)
        assert (smallest_inside > largest_outside).all()


def test_metrics_are_those_of_scaled_logits_and_counted_sets() -> None:
    logits, labels = drawn(100, 4, 5)
    calibration = Calibration(temperature=2.0, coverage=0.9, sets="lac", threshold=1.0, samples=10)
    result = calibrated_metrics(logits, labels, calibration)
    assert result["nll"] == pytest.approx(float(F.cross_entropy(logits / 2, labels)), rel=1e-6)
    members = [
        [k for k in range(4) if -math.log(p[k]) <= 1 or p[k] == max(p)] for p in logits.double().softmax(1).tolist()
    ]
    assert result["set_size"] == pytest.approx(sum(map(len, members)) / 100)
    assert result["coverage"] == pytest.approx(sum(y in m for y, m in zip(labels.tolist(), members, strict=True)) / 100)
    torch.testing.assert_close(calibration.probabilities(logits), (logits / 2).softmax(1))


def test_invalid_values_are_refused(refused: Refused) -> None:
    logits, labels = drawn(100, 4, 6)
    with refused("coverage", "1.5"):
        fit_calibration(logits, labels, coverage=1.5)
    with refused("sets", "raps"):
        fit_calibration(logits, labels, sets="raps")  # type: ignore[arg-type]
    with refused("temperature"):
        Calibration(temperature=-1.0, coverage=0.9, sets="lac", threshold=1.0, samples=10)
