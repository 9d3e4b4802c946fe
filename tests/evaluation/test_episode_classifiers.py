"""Classifiers of few-shot episodes against references."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests.evaluation.random_vectors import vectors
from tutelage.evaluation.few_shot_classifiers import adam_regression, logistic_regression, nearest_mean
from tutelage.evaluation.interpolation import (
    prepared,
)


@pytest.mark.parametrize("regularization", [1.0, 100.0])
@pytest.mark.parametrize("shape", [(5, 40), (25, 40), (25, 8)], ids=str)
def test_logistic_regression_equals_scikit_learn(regularization: float, shape: tuple[int, int]) -> None:
    support, queries = prepared(vectors(4, *shape), vectors(4, 9, shape[1], seed=1))
    targets = torch.arange(5).repeat_interleave(shape[0] // 5)
    actual = logistic_regression(support, targets, queries, 5, regularization)
    assert actual.shape == (4, 9, 5)
    for number in range(4):
        oracle = LogisticRegression(C=regularization, max_iter=10000, tol=1e-9)
        oracle.fit(support[number].numpy(), targets.numpy())
        expected = torch.from_numpy(oracle.decision_function(queries[number].numpy()))
        torch.testing.assert_close(
            actual[number] - actual[number].mean(1, keepdim=True),
            expected - expected.mean(1, keepdim=True),
            rtol=1e-3,
            atol=1e-3,
        )


def test_logistic_regression_of_one_point_and_of_equal_points_is_finite() -> None:
    equal_scores = torch.ones(4, 3)
    assert (
        logistic_regression(equal_scores, torch.tensor([0, 0, 1, 1]), equal_scores, 2).softmax(1).tolist()
        == [[0.5, 0.5]] * 4
    )
    assert logistic_regression(1e4 * vectors(4, 3), torch.arange(4), vectors(2, 3), 4).isfinite().all()


def test_adam_equals_the_loop_of_the_authors_for_each_episode() -> None:
    support, queries, targets = vectors(3, 6, 4), vectors(3, 5, 4, seed=1), torch.arange(6) // 2
    actual = adam_regression(support, targets, queries, 3, steps=50)
    for number in range(3):
        layer = nn.Linear(4, 3).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=5e-6)
        for _ in range(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(layer(support[number]), targets).backward()
            optimiser.step()
        torch.testing.assert_close(actual[number], layer(queries[number]).detach())


def test_nearest_mean_by_hand() -> None:
    support = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.0, 7.0]])
    actual = nearest_mean(support, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 3.0], [1.0, 4.0]]), 2)
    assert actual.tolist() == [[-9, -10], [-16, -5]]
