"""Few-shot episodes: sampling, and evaluation without a leak of query classes."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tutelage.evaluation.episodes import (
    Episodes,
    evaluate_alone,
    evaluate_episodes,
    mean_and_half_width,
    sample_episodes,
)
from tutelage.evaluation.few_shot_classifiers import adam_regression, logistic_regression, nearest_mean
from tutelage.evaluation.interpolation import (
    interpolated,
    neighbour_graph,
    prepared,
    prepared_alone,
)


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
