"""Features of few-shot episodes: the graph of neighbours, centring and interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.evaluation.random_vectors import vectors
from tutelage.evaluation.few_shot_classifiers import logistic_regression
from tutelage.evaluation.interpolation import (
    diffusion,
    interpolated,
    most_neighbours,
    neighbour_graph,
    prepared,
    prepared_alone,
    purity,
)

# --- the graph


def test_diffusion_swaps_two_equal_vectors() -> None:
    similarity = neighbour_graph(vectors(1, 3).expand(2, 3), 0)
    operator = diffusion(similarity, alpha=0.0, kappa=1)
    torch.testing.assert_close(operator, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))


def test_graph_is_the_union_of_nearest_neighbours() -> None:
    points = vectors(3, 12, 5)
    for number, graph in enumerate(neighbour_graph(points, 3)):
        rows = points[number].numpy()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = unit @ unit.T
        nearest = [set(sorted((j for j in range(12) if j != i), key=lambda j: -cosines[i, j])[:3]) for i in range(12)]
        for i in range(12):
            for j in range(12):
                is_edge = i != j and (j in nearest[i] or i in nearest[j])
                assert float(graph[i, j]) == pytest.approx(cosines[i, j] if is_edge else 0.0, abs=1e-12)


@pytest.mark.parametrize("neighbours", [0, 11, 50])
def test_no_limit_or_a_large_limit_keeps_all_pairs(neighbours: int) -> None:
    graph = neighbour_graph(vectors(12, 5), neighbours)
    assert ((graph > 0) == ~torch.eye(12, dtype=torch.bool)).all()


@pytest.mark.parametrize("neighbours", [0, 4])
def test_square_roots_of_degrees_are_an_eigenvector(neighbours: int) -> None:
    similarity = neighbour_graph(vectors(5, 20, 8), neighbours)
    operator, root = diffusion(similarity), similarity.sum(-1).sqrt()
    torch.testing.assert_close((operator @ root[..., None])[..., 0], 3.375 * root)
    torch.testing.assert_close(operator, operator.mT)
    eigenvalues = torch.linalg.eigvalsh(diffusion(similarity, alpha=0.0, kappa=1))
    assert eigenvalues.abs().max() <= 1 + 1e-12
    assert torch.linalg.eigvalsh(operator).abs().max().item() == pytest.approx(3.375)


def test_disconnected_cliques_do_not_mix() -> None:
    points = torch.zeros(8, 6, dtype=torch.float64)
    points[:4, :3], points[4:, 3:] = vectors(4, 3), vectors(4, 3, seed=1)
    operator = diffusion(neighbour_graph(points, 0))
    assert (operator[:4, 4:] == 0).all()
    assert (operator[:4, :4] > 0).all()


def test_negative_cosines_and_isolated_samples_give_no_nan() -> None:
    points = torch.tensor([[1.0, 0.0], [2.0, 0.1], [-1.0, -0.1], [0.0, 0.0]])
    similarity = neighbour_graph(points, 2)
    assert (similarity >= 0).all()
    operator = diffusion(similarity)
    assert operator.isfinite().all()
    assert operator[2].tolist() == operator[:, 2].tolist() == [0, 0, 0.125, 0]
    assert operator[3].tolist() == [0, 0, 0, 0.125]
    assert all(part.isfinite().all() for part in interpolated((points[:2], points[2:]), similarity))
    assert diffusion(torch.full((2, 2), torch.nan)).isnan().all()


def test_default_limit_of_neighbours() -> None:
    assert most_neighbours(5 * (1 + 15), 5) == 15
    assert most_neighbours(5 * (1 + 2), 5) == 2
    assert most_neighbours(6, 5) == 1


def test_purity_by_hand() -> None:
    similarity = torch.tensor([[0.0, 0.6, 0.0], [0.6, 0.0, 0.2], [0.0, 0.2, 0.0]])
    assert purity(similarity, torch.tensor([0, 0, 1])).item() == pytest.approx(0.75)
    assert purity(torch.zeros(3, 3), torch.tensor([0, 0, 1])).isnan()
    assert purity(torch.stack([similarity] * 2), torch.tensor([0, 1, 0])).tolist() == [0, 0]


# --- preparation and interpolation


def test_support_and_queries_are_centred_separately_and_normalised() -> None:
    support, queries = prepared(vectors(2, 5, 4), vectors(2, 7, 4, seed=1) + 3)
    raw = vectors(2, 7, 4, seed=1) + 3
    raw = raw - raw.mean(1, keepdim=True)
    torch.testing.assert_close(queries, raw / raw.norm(dim=2, keepdim=True))
    assert support.norm(dim=2).tolist() == pytest.approx(np.ones((2, 5)))
    single_episode = vectors(1, 4, seed=2)
    torch.testing.assert_close(prepared(vectors(5, 4), single_episode)[1], single_episode / single_episode.norm())


def test_inductive_preparation_treats_queries_independently() -> None:
    support, queries = vectors(5, 4), vectors(6, 4, seed=1)
    expected = prepared_alone(support, queries)
    torch.testing.assert_close(expected[0], prepared(support, queries)[0])
    for number in range(6):
        torch.testing.assert_close(prepared_alone(support, queries[number : number + 1])[1][0], expected[1][number])
    raw = queries - support.mean(0)
    torch.testing.assert_close(expected[1], raw / raw.norm(dim=1, keepdim=True))


def test_interpolation_is_one_product_with_the_operator() -> None:
    support, queries = vectors(5, 4), vectors(6, 4, seed=1)
    similarity = neighbour_graph(torch.cat([support, queries]), 3)
    expected = diffusion(similarity, 0.3, 2) @ torch.cat(prepared(support, queries))
    torch.testing.assert_close(torch.cat(interpolated(prepared(support, queries), similarity, 0.3, 2)), expected)


def test_interpolation_without_edges_and_with_alpha_one_is_the_identity() -> None:
    """With the identity as operator this is ordinary logistic regression."""
    support, queries, targets = vectors(6, 4), vectors(5, 4, seed=1), torch.arange(6) // 2
    interpolated_features = interpolated(
        prepared(support, queries), torch.zeros(11, 11, dtype=torch.float64), alpha=1.0
    )
    for actual, expected in zip(interpolated_features, prepared(support, queries), strict=True):
        torch.testing.assert_close(actual, expected)
    plain = prepared(support, queries)
    oracle = LogisticRegression(C=100, max_iter=5000, tol=1e-8).fit(plain[0].numpy(), targets.numpy())
    probabilities = logistic_regression(interpolated_features[0], targets, interpolated_features[1], 3).softmax(-1)
    np.testing.assert_allclose(probabilities.numpy(), oracle.predict_proba(plain[1].numpy()), atol=1e-4)


def test_permuting_the_queries_permutes_the_logits() -> None:
    support, queries, targets = vectors(10, 6), vectors(15, 6, seed=1), torch.arange(10) // 2
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))

    def logits(queries: Tensor) -> Tensor:
        similarity = neighbour_graph(torch.cat([support, queries]), 4)
        smooth = interpolated(prepared(support, queries), similarity)
        return logistic_regression(smooth[0], targets, smooth[1], 5)

    torch.testing.assert_close(logits(queries[order]), logits(queries)[order], rtol=1e-5, atol=1e-5)
