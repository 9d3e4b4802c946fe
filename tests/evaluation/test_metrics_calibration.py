"""Calibration: expected calibration error, calibration gap and reliability."""

from __future__ import annotations

import math

import pytest
import torch

from tests.evaluation.metric_loops import CERTAIN, CORRECT, draw_predictions, of_confidence, slow_ece
from tutelage.evaluation import metrics


@pytest.mark.parametrize("bins", [1, 4, 40])
def test_ece_with_other_bins(bins: int) -> None:
    logits, _, labels = draw_predictions(3, 90, 5, torch.float64)
    assert metrics.ece(logits, labels, bins).item() == pytest.approx(slow_ece(logits, labels, bins), abs=1e-12)


@pytest.mark.parametrize(("bins", "index"), [(2, 0), (4, 1), (3, 1)])
def test_confidence_on_a_bin_edge_belongs_to_the_bin_below(bins: int, index: int) -> None:
    diagram = metrics.reliability(torch.zeros(1, 2), torch.tensor([0]), bins)
    assert diagram.count.tolist() == [int(b == index) for b in range(bins)]


@pytest.mark.parametrize(("classes", "bins"), [(3, 15), (5, 15), (15, 15), (2, 14), (5, 55)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bin_edges_are_the_nearest_floats(classes: int, bins: int, dtype: torch.dtype) -> None:
    """The confidence of uniform logits is the float nearest to 1/C, a bin edge; with 55 bins linspace is below it."""
    diagram = metrics.reliability(torch.zeros(1, classes, dtype=dtype), torch.tensor([0]), bins)
    assert diagram.count.nonzero().tolist() == [[bins // classes - 1]]


def test_confidence_of_one_is_in_the_last_bin() -> None:
    assert metrics.reliability(CERTAIN, CORRECT).count.tolist() == [0] * 14 + [6]


def test_reliability_by_hand() -> None:
    logits, labels = of_confidence(0.7, 0.72, 0.9, 0.6), torch.tensor([0, 1, 0, -1])
    diagram = metrics.reliability(logits, labels, bins=4)
    assert diagram.count.tolist() == [0, 0, 2, 1]
    assert diagram.accuracy.tolist() == pytest.approx([math.nan, math.nan, 0.5, 1], nan_ok=True)
    assert diagram.confidence.tolist() == pytest.approx([math.nan, math.nan, 0.71, 0.9], nan_ok=True)
    assert diagram.error.item() == pytest.approx((2 * 0.21 + 1 * 0.1) / 3)


def test_ece_with_all_samples_in_one_bin_is_the_gap() -> None:
    logits, labels = of_confidence(0.81, 0.82, 0.83, 0.84), torch.tensor([0, 0, 0, 1])
    assert metrics.ece(logits, labels).item() == pytest.approx(0.825 - 0.75)
    assert metrics.calibration_gap(logits, labels).item() == pytest.approx(0.825 - 0.75)


@pytest.mark.parametrize(("label", "expected"), [(0, 0.1), (1, 0.9)])
def test_ece_of_one_sample(label: int, expected: float) -> None:
    assert metrics.ece(of_confidence(0.9), torch.tensor([label])).item() == pytest.approx(expected)


def test_calibration_gap_is_signed_and_ece_does_not_cancel() -> None:
    logits = of_confidence(0.6, 0.6, 0.9, 0.9)
    modest, bold = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 1])
    assert metrics.calibration_gap(logits, modest).item() == pytest.approx(-0.25)
    assert metrics.calibration_gap(logits, bold).item() == pytest.approx(0.75)
    labels = torch.tensor([0, 0, 1, 0])
    assert metrics.calibration_gap(logits, labels).item() == pytest.approx(0)
    assert metrics.ece(logits, labels).item() == pytest.approx(0.4)


def test_ece_of_nan_logits_is_nan() -> None:
    assert metrics.ece(torch.full((3, 2), math.nan), torch.tensor([0, 1, 0])).isnan()


@pytest.mark.parametrize("seed", range(3))
def test_ece_equals_torchmetrics(seed: int) -> None:
    reference = pytest.importorskip("torchmetrics.functional.classification")
    logits, _, labels = draw_predictions(seed, 200, 6, torch.float32)
    expected = reference.multiclass_calibration_error(
        logits.softmax(1), labels, num_classes=6, n_bins=15, norm="l1", ignore_index=-1
    )
    torch.testing.assert_close(metrics.ece(logits, labels), expected, atol=1e-5, rtol=0)


def test_zero_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        metrics.ece(torch.zeros(1, 2), torch.tensor([0]), 0)
