"""Ordered classes: the rounded expectation and quadratically weighted kappa."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from tutelage.evaluation.ordinal import expected_grade, grade_error, quadratic_kappa


def logits_of(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).clamp_min(1e-9).log()


def test_expectation_is_rounded() -> None:
    rows = [[0.38, 0.0, 0.3, 0.32], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.3, 0.4, 0.3, 0.0]]
    assert expected_grade(logits_of(rows)).tolist() == [2, 0, 3, 1]  # the expectations are 1.56, 0, 3 and 1
    assert logits_of(rows).argmax(1).tolist() == [0, 0, 3, 1]
    assert expected_grade(torch.zeros(1, 4)).item() == 2  # 1.5, to the even grade
    assert expected_grade(torch.zeros(1, 6)).item() == 2  # 2.5


def test_expected_grade_equals_plain_loops() -> None:
    logits = 3 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    expected = []
    for row in logits.double().tolist():
        exponents = [math.exp(z - max(row)) for z in row]
        expected.append(round(sum(k * e for k, e in enumerate(exponents)) / sum(exponents)))
    assert expected_grade(logits).tolist() == expected
    assert expected_grade(logits.bfloat16()).dtype == torch.int64


def test_expected_grade_has_the_smallest_expected_squared_error() -> None:
    logits = 2 * torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    grades = torch.arange(5)
    squared = (grades[:, None] - grades).square().float() @ logits.softmax(1).T  # by prediction and sample
    assert torch.equal(squared.argmin(0), expected_grade(logits))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_kappa_equals_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (150,), generator=generator)
    predicted = (labels + torch.randint(-1, 2, (150,), generator=generator)).clamp(0, classes - 1)
    expected = cohen_kappa_score(labels, predicted, weights="quadratic")
    assert quadratic_kappa(predicted, labels).item() == pytest.approx(expected, abs=1e-12)


def test_kappa_of_known_predictions() -> None:
    labels = torch.arange(5).repeat(4)
    assert quadratic_kappa(labels, labels).item() == 1
    assert quadratic_kappa(torch.full((20,), 2), labels).item() == 0  # constant
    assert quadratic_kappa(4 - labels, labels).item() == pytest.approx(-1)
    assert quadratic_kappa(torch.zeros(5).long(), torch.zeros(5).long()).isnan()
    assert grade_error(4 - labels, labels).item() == pytest.approx((4 + 2 + 0 + 2 + 4) / 5)
