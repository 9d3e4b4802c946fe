"""Weights of clients, and their aggregate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.methods.dlad import ClientOutputs, soft_labels
from tutelage.methods.dlad.weights import aggregate, certainty, odds_shares, shares

CLIENTS, SAMPLES, CLASSES = 3, 7, 4


@pytest.fixture
def predictions() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (3 * torch.randn(CLIENTS, SAMPLES, CLASSES, generator=generator, dtype=torch.float64)).softmax(2)


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 3 * torch.randn(CLIENTS, SAMPLES, generator=generator, dtype=torch.float64)


def clients_of(predictions: Tensor, logits: Tensor) -> list[ClientOutputs]:
    return [ClientOutputs(f, g) for f, g in zip(predictions, logits, strict=True)]


@pytest.mark.parametrize("kind", ["confidence", "odds", "probability", "entropy", "uniform"])
def test_soft_labels_equal_plain_loops(kind: Any, predictions: Tensor, logits: Tensor) -> None:
    temperature = 1.7

    def score(client: int, sample: int) -> float:
        f, z = predictions[client, sample].tolist(), float(logits[client, sample])
        return {
            "confidence": 1 / (1 + math.exp(-z)),
            "odds": math.exp(z) ** (1 / temperature),
            "probability": max(f),
            "entropy": 1 + sum(p * math.log(p) for p in f) / math.log(CLASSES),
            "uniform": 1.0,
        }[kind]

    expected = []
    for sample in range(SAMPLES):
        scores = [score(client, sample) for client in range(CLIENTS)]
        rows = [predictions[client, sample].tolist() for client in range(CLIENTS)]
        expected.append(
            [sum(s * f[k] for s, f in zip(scores, rows, strict=True)) / sum(scores) for k in range(CLASSES)]
        )
    result = soft_labels(clients_of(predictions, logits), kind, temperature)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(result.sum(1), torch.ones(SAMPLES, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["confidence", "odds"])
def test_constant_confidence_gives_the_plain_average(kind: Any, predictions: Tensor) -> None:
    constant = torch.full((CLIENTS, SAMPLES), -1.3, dtype=torch.float64)
    torch.testing.assert_close(soft_labels(clients_of(predictions, constant), kind, 1.0), predictions.mean(0))


@pytest.mark.parametrize("kind", ["confidence", "odds", "probability", "entropy", "uniform"])
def test_soft_labels_of_one_client_are_its_predictions(kind: Any, predictions: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(soft_labels(clients_of(predictions[:1], logits[:1]), kind, 1.0), predictions[0])


@pytest.mark.parametrize("kind", ["confidence", "odds", "probability", "entropy", "uniform"])
def test_order_of_clients_does_not_matter(kind: Any, predictions: Tensor, logits: Tensor) -> None:
    clients = clients_of(predictions, logits)
    torch.testing.assert_close(soft_labels(clients, kind, 2.0), soft_labels(clients[::-1], kind, 2.0))


def test_perfect_confidences_select_the_client_that_knows_the_class() -> None:
    classes = torch.tensor([0, 1, 2, 3, 1])
    knows = torch.stack([classes < 2, classes >= 2])
    predictions = torch.randn(2, 5, CLASSES).softmax(2)
    right_client = torch.where(knows[0][:, None], predictions[0], predictions[1])
    torch.testing.assert_close(aggregate(predictions, shares(knows.float())), right_client)
    assert not torch.allclose(predictions.mean(0), right_client)


def test_weights_are_equal_where_no_client_is_confident() -> None:
    confidences = torch.tensor([[0.0, 1e-12, 0.6], [0.0, 0.0, 0.2]])
    torch.testing.assert_close(shares(confidences), torch.tensor([[0.5, 0.5, 0.75], [0.5, 0.5, 0.25]]))


def test_odds_are_the_posterior_of_a_mixture() -> None:
    # With p_i / p = odds of g_i, equal priors give P(i | x) = p_i / sum_j p_j.
    densities = torch.tensor([[0.2, 3.0], [0.6, 1.0]])
    own = densities / (densities + 1.5)  # g for p = 1.5
    torch.testing.assert_close(odds_shares(own.logit()), densities / densities.sum(0))


def test_temperature_of_odds() -> None:
    logits = torch.tensor([[2.0], [0.5]])
    assert odds_shares(logits, 0.01)[0] > 0.999
    torch.testing.assert_close(odds_shares(logits, 1e6), torch.full((2, 1), 0.5))


def test_certainty_of_even_and_one_hot_distributions() -> None:
    torch.testing.assert_close(
        certainty(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])),
        torch.tensor([0.0, 1.0, 0.5]),
    )


def test_even_predictions_of_all_clients_are_averaged() -> None:
    even = torch.full((2, 3, CLASSES), 1 / CLASSES)
    logits = torch.zeros(2, 3)
    torch.testing.assert_close(soft_labels(clients_of(even, logits), "entropy", 1.0), even[0])


def test_weights_of_another_shape_are_refused(refused: Any) -> None:
    with refused("weights of shape (2, 3)", "(2, 4, 5)"):
        aggregate(torch.rand(2, 4, 5), torch.rand(2, 3))
