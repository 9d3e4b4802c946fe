"""Few-shot episodes: sampling, graph identities, classifiers against references, no leak of query classes."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from tutelage.evaluation.episodes import (
    Episodes,
    evaluate_alone,
    evaluate_episodes,
    mean_and_half_width,
    sample_episodes,
)
from tutelage.evaluation.few_shot_classifiers import adam_regression, logistic_regression, nearest_mean
from tutelage.evaluation.interpolation import (
    diffusion,
    interpolated,
    most_neighbours,
    neighbour_graph,
    prepared,
    prepared_alone,
    purity,
)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw_episodes(labels: Tensor, count: int, seed: int = 0, **settings: Any) -> Episodes:
    return sample_episodes(labels, count, torch.Generator().manual_seed(seed), **settings)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels), torch.from_numpy(labels)


# --- episodes


def test_episode_has_the_requested_classes_shots_and_queries() -> None:
    labels = torch.cat([torch.arange(120) % 8, torch.full((9,), -1), torch.full((4,), 8)])
    episodes = draw_episodes(labels, 30, ways=4, shots=2, queries=5)
    assert (episodes.support.shape, episodes.queries.shape, episodes.ways) == ((30, 8), (30, 20), 4)
    for support, queries in zip(episodes.support, episodes.queries, strict=True):
        assert len(torch.cat([support, queries]).unique()) == 28
        classes = labels[support].view(4, 2)
        assert (classes == classes[:, :1]).all()
        assert len(classes[:, 0].unique()) == 4
        assert classes.max() < 8  # class 8 has too few samples
        assert torch.equal(labels[queries], classes[episodes.query_targets, 0])
    assert episodes.support_targets.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_uneven_queries_are_assigned_to_random_classes() -> None:
    labels = torch.arange(200) % 5
    episodes = draw_episodes(labels, 40, ways=3, shots=1, queries=[9, 2, 0])
    assert episodes.query_targets.tolist() == [0] * 9 + [1] * 2
    assert len(labels[episodes.support[:, 0]].unique()) == 5


def test_episodes_depend_only_on_the_generator() -> None:
    labels = torch.arange(100) % 5
    before = torch.get_rng_state()
    first, second, other = draw_episodes(labels, 5), draw_episodes(labels, 5), draw_episodes(labels, 5, seed=1)
    assert torch.equal(first.support, second.support)
    assert torch.equal(first.queries, second.queries)
    assert not torch.equal(first.support, other.support)
    assert torch.equal(torch.get_rng_state(), before)


def test_classes_and_samples_are_drawn_uniformly() -> None:
    labels = torch.arange(60) % 6
    samples = draw_episodes(labels, 3000, ways=2, shots=1, queries=1).support
    assert torch.bincount(samples.flatten(), minlength=60).tolist() == pytest.approx([100] * 60, abs=45)


def test_invalid_episode_sizes_are_refused(refused: Any) -> None:
    labels = torch.tensor([0] * 16 + [1] * 16 + [2] * 3)
    with refused("episodes of 3 classes need 16 samples", "2 of 3 classes", "use fewer"):
        draw_episodes(labels, 1, ways=3)
    invalid_settings: list[dict[str, Any]] = [
        {"ways": 1},
        {"shots": 0},
        {"queries": 0},
        {"queries": [1, 2]},
        {"queries": [1, -1, 1, 1, 1]},
    ]
    for settings in invalid_settings:
        with pytest.raises(ValueError, match="an episode needs"):
            draw_episodes(labels, 1, **settings)


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


# --- classifiers


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


# --- evaluation


def test_mean_and_half_width() -> None:
    mean, half = mean_and_half_width(torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert (mean, half) == (0.5, pytest.approx(1.96 * math.sqrt(1 / 3) / 2))
    assert math.isnan(mean_and_half_width(torch.tensor([0.3]))[1])


def test_query_classes_do_not_reach_the_classifier(digits: tuple[Tensor, Tensor]) -> None:
    """Inputs of the classifier do not depend on query classes, and no function before it accepts them."""
    inputs_of_classifier: list[Tensor] = []

    def watching(support: Tensor, targets: Tensor, queries: Tensor, class_count: int) -> Tensor:
        inputs_of_classifier.append(torch.cat([support, queries], 1))
        return nearest_mean(support, targets, queries, class_count)

    episodes = draw_episodes(digits[1], 4)
    permuted = replace(episodes, query_targets=episodes.query_targets.flip(0))
    right = evaluate_episodes(digits[0], episodes, classifier=watching)
    other = evaluate_episodes(digits[0], permuted, classifier=watching)
    assert len(inputs_of_classifier) == 4
    assert all(torch.equal(*pair) for pair in zip(inputs_of_classifier[:2], inputs_of_classifier[2:], strict=True))
    assert right["accuracy"] > other["accuracy"]
    assert right["neighbours"] == other["neighbours"]
    for function in (interpolated, prepared, neighbour_graph, logistic_regression, adam_regression, nearest_mean):
        assert "query_targets" not in inspect.signature(function).parameters


def test_result_is_the_mean_over_chunks_of_episodes(digits: tuple[Tensor, Tensor]) -> None:
    episodes = draw_episodes(digits[1], 103, ways=3, queries=3)
    all_episodes = evaluate_episodes(digits[0], episodes)
    parts = [slice(0, 1), slice(1, 60), slice(60, 103)]
    chunk_results = [
        evaluate_episodes(digits[0], replace(episodes, support=episodes.support[p], queries=episodes.queries[p]))
        for p in parts
    ]
    for name in ("accuracy", "without_graph", "nearest_mean", "inductive", "gain", "purity"):
        mean = sum(chunk[name] * chunk["episodes"] for chunk in chunk_results) / 103
        assert all_episodes[name] == pytest.approx(mean)
    assert all_episodes["gain"] == pytest.approx(all_episodes["accuracy"] - all_episodes["without_graph"])


def test_inductive_query_is_classified_as_in_its_own_episode(digits: tuple[Tensor, Tensor]) -> None:
    features, episodes = digits[0], draw_episodes(digits[1], 8, ways=3, queries=[2, 0, 4])
    right = []
    for number in range(8):
        support = features[episodes.support[number]]
        for position, label in ((0, 0), (2, 2)):  # the first query of each class that has one
            query = features[episodes.queries[number, position]][None]
            similarity = neighbour_graph(torch.cat([support, query]), 10)
            smooth = interpolated(prepared_alone(support, query), similarity)
            logits = logistic_regression(smooth[0], episodes.support_targets, smooth[1], 3)
            right.append(int(logits.argmax()) == label)
    actual = evaluate_alone(features, episodes)
    assert actual["inductive_graph"] == pytest.approx(np.mean(right))
    half = 1.96 * np.std(np.reshape(right, (8, 2)).mean(1), ddof=1) / math.sqrt(8)
    assert actual["inductive_graph_half_width"] == pytest.approx(half)


def test_accuracy_gained_from_the_other_queries(digits: tuple[Tensor, Tensor]) -> None:
    """On pixels of digits a graph of one query and its support helps little, and one of all queries much."""
    features, episodes = digits[0].float(), draw_episodes(digits[1], 200)
    actual = evaluate_episodes(features, episodes) | evaluate_alone(features, episodes)
    assert actual["inductive"] < actual["without_graph"] < actual["accuracy"] - 0.05
    assert actual["inductive_graph"] < actual["accuracy"] - 0.03


@pytest.mark.parametrize(
    ("settings", "neighbours", "unaided_accuracy", "gain"),
    [
        ({}, 10, 0.76, 0.086),
        ({"queries": 2}, 10, 0.764, -0.094),  # more neighbours than a class has: the graph lowers accuracy
        ({"queries": [30, 11, 11, 11, 11]}, 10, 0.732, 0.071),
        ({"shots": 5}, 10, 0.918, 0.005),
    ],
    ids=["one shot", "two queries", "uneven", "five shots"],
)
def test_gains_on_the_pixels_of_digits(
    settings: dict[str, Any], neighbours: int, unaided_accuracy: float, gain: float, digits: tuple[Tensor, Tensor]
) -> None:
    """Values measured by another program over 180 episodes."""
    actual = evaluate_episodes(digits[0].float(), draw_episodes(digits[1], 100, **settings), neighbours=neighbours)
    assert actual["without_graph"] == pytest.approx(unaided_accuracy, abs=0.04)
    assert actual["gain"] == pytest.approx(gain, abs=0.04)
    assert 0.1 < actual["purity"] < 0.9


def test_default_limits_neighbours_to_the_class_size(digits: tuple[Tensor, Tensor]) -> None:
    episodes = draw_episodes(digits[1], 100, queries=2)
    limited_result, fixed_result = (evaluate_episodes(digits[0], episodes, neighbours=k) for k in (None, 10))
    assert (limited_result["neighbours"], fixed_result["neighbours"]) == (2, 10)
    assert limited_result["purity"] > fixed_result["purity"] + 0.3
    assert limited_result["accuracy"] > fixed_result["accuracy"]
