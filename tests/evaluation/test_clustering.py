"""Clustering: multicut against all partitions and against k-means; agreement scores with known values."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.orders import PK
from tutelage.evaluation.clustering import ari, k_means, matched_accuracy, nmi, variation_of_information
from tutelage.evaluation.multicut import (
    contract_edges,
    cut_costs,
    fit_cut,
    improve_partition,
    multicut,
    multicut_objective,
    pair_distances,
)
from tutelage.models.outputs import Outputs
from tutelage.terms import Triplets


def random_costs(samples: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    values = torch.randn(samples, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift
    return values.triu(1) + values.triu(1).T


def blobs(samples: int, clusters: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % clusters
    centres = 2 * torch.eye(clusters)  # at squared distances of 8
    return centres[labels] + spread * torch.randn(samples, clusters, generator=generator), labels


def all_partitions(samples: int) -> Tensor:
    """All partitions as cluster numbers in order of first members: (Bell number, samples)."""
    partial = [[0]]
    for _ in range(samples - 1):
        partial = [[*p, k] for p in partial for k in range(max(p) + 2)]
    return torch.tensor(partial)


# --- costs


def test_costs_are_log_odds_of_not_being_cut() -> None:
    distances = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    q = 1 / (1 + torch.exp(-(1.5 * distances - 2.5)))
    torch.testing.assert_close(cut_costs(distances, 1.5, -2.5), torch.log((1 - q) / q))
    assert cut_costs(distances).tolist() == [2, 1, 0, -1, -3]  # threshold 2, half-way between 1 and 3
    assert cut_costs(torch.tensor([1e6])).isfinite().all()


def test_squared_distances_are_exact_far_from_the_origin() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    assert pair_distances(points + 1000).tolist() == [[0, 25, 25], [25, 0, 0], [25, 0, 0]]


def test_fitted_costs_separate_separable_pairs_at_any_scale() -> None:
    embeddings, labels = blobs(60, 4, 0.2)
    labels[5] = -1
    for scale in (1.0, 1000.0):
        distances = pair_distances(scale * embeddings)
        slope, offset = fit_cut(distances, labels)
        costs, pairs = cut_costs(distances, slope, offset), torch.ones(60, 60).triu(1).bool()
        assert slope > 0
        assert ((costs > 0) == (torch.arange(60)[:, None] % 4 == torch.arange(60) % 4))[pairs].all()


# --- multicut


def test_two_cliques_with_repulsion_between_them_are_two_clusters() -> None:
    costs = -torch.ones(9, 9)
    costs[:4, :4] = costs[4:, 4:] = 1
    assert multicut(costs).tolist() == [0] * 4 + [1] * 5
    assert multicut_objective(costs, multicut(costs)) == -20


def test_repulsive_costs_give_singletons_and_attractive_costs_one_cluster() -> None:
    assert multicut(-torch.ones(7, 7)).tolist() == list(range(7))
    assert multicut(torch.ones(7, 7)).tolist() == [0] * 7
    assert multicut(torch.zeros(1, 1)).tolist() == [0]


def test_diagonal_is_ignored_and_costs_are_not_modified() -> None:
    costs = random_costs(8)
    with_diagonal = costs + 100 * torch.eye(8)
    before = with_diagonal.clone()
    assert torch.equal(multicut(with_diagonal), multicut(costs))
    assert torch.equal(with_diagonal, before)
    assert multicut_objective(with_diagonal, torch.zeros(8)) == 0


@pytest.mark.parametrize("samples", [2, 3, 5, 7])
def test_multicut_against_all_partitions(samples: int) -> None:
    """Multicut is never better than the optimum, usually equal to it, and never worse than contraction alone."""
    partitions = all_partitions(samples)
    cut = partitions[:, :, None] != partitions[:, None]
    optimal = 0
    for seed in range(50):
        costs = random_costs(samples, seed, shift=0.3 * (seed % 3 - 1))
        objectives = (costs.triu(1) * cut).sum((1, 2))
        objective = multicut_objective(costs, multicut(costs))
        best = float(objectives.min())
        assert multicut_objective(costs, partitions[int(objectives.argmin())]) == pytest.approx(best)
        assert objective >= best - 1e-9
        assert objective <= multicut_objective(costs, torch.from_numpy(contract_edges(costs.numpy()))) + 1e-9
        optimal += objective <= best + 1e-9
    assert optimal >= 45


def naive_contraction(costs: Tensor) -> list[set[int]]:
    """Greedy contraction that examines all pairs of clusters at each step."""
    clusters = [{i} for i in range(len(costs))]
    while len(clusters) > 1:
        pairs = list(itertools.combinations(range(len(clusters)), 2))
        sums = [sum(float(costs[i, j]) for i in clusters[a] for j in clusters[b]) for a, b in pairs]
        best = max(range(len(pairs)), key=sums.__getitem__)
        if sums[best] <= 0:
            break
        a, b = pairs[best]
        clusters[a] |= clusters.pop(b)
    return clusters


def groups(clusters: Tensor) -> list[set[int]]:
    return [set((clusters == c).nonzero().flatten().tolist()) for c in clusters.unique()]


@pytest.mark.parametrize("seed", range(5))
def test_contraction_equals_a_reference_over_all_pairs(seed: int) -> None:
    costs = random_costs(14, seed)
    actual = groups(torch.from_numpy(contract_edges(costs.numpy())))
    assert sorted(map(sorted, actual)) == sorted(map(sorted, naive_contraction(costs)))


@pytest.mark.parametrize("seed", [*range(10), 218, 882, 1297])
def test_contraction_with_equal_costs_leaves_no_attracting_clusters(seed: int) -> None:
    samples = 6 + seed % 10
    costs = torch.randint(-2, 3, (samples, samples), generator=torch.Generator().manual_seed(seed)).double()
    costs = costs.triu(1) + costs.triu(1).T
    actual = groups(torch.from_numpy(contract_edges(costs.numpy())))
    sums = [sum(float(costs[i, j]) for i in a for j in b) for a, b in itertools.combinations(actual, 2)]
    assert max(sums, default=0) <= 0


def test_kernighan_lin_repairs_a_greedy_mistake() -> None:
    """Contraction joins the edge of weight 3 first; the optimum cuts it and joins two of weight 2.5."""
    costs = torch.full((4, 4), -2.0)
    costs[0, 1] = costs[1, 0] = 3.0
    costs[0, 2] = costs[2, 0] = costs[1, 3] = costs[3, 1] = 2.5
    greedy = torch.from_numpy(contract_edges(costs.numpy().astype("float64")))
    assert greedy[0] == greedy[1]
    assert multicut(costs).tolist() == [0, 1, 0, 1]
    assert multicut_objective(costs, multicut(costs)) < multicut_objective(costs, greedy)


@pytest.mark.parametrize("start", ["alone", "together", "halves"])
def test_partition_is_improved_by_joins_splits_and_moves(start: str) -> None:
    costs = -torch.ones(12, 12)
    for first in (0, 4, 8):
        costs[first : first + 4, first : first + 4] = 1
    costs = costs.fill_diagonal_(0).double()
    begin = {"alone": torch.arange(12), "together": torch.zeros(12).long(), "halves": torch.arange(12) % 2}[start]
    clusters = torch.from_numpy(improve_partition(costs.numpy(), begin.numpy()))
    assert ari(torch.arange(12) // 4, clusters) == 1


@pytest.mark.parametrize("spread", [0.1, 0.4, 0.6])
def test_multicut_objective_is_at_most_that_of_k_means(spread: float) -> None:
    embeddings, labels = blobs(150, 6, spread)
    costs = cut_costs(pair_distances(embeddings), offset=-4.0)
    clusters = multicut(costs)
    assert multicut_objective(costs, clusters) <= multicut_objective(costs, k_means(embeddings, 6)) + 1e-6
    if spread == 0.1:
        assert ari(labels, clusters) == 1
        assert len(clusters.unique()) == 6


def test_a_thousand_samples_take_seconds() -> None:
    embeddings, labels = blobs(1000, 10, 0.35)
    costs = cut_costs(pair_distances(embeddings), offset=-5.0)
    start = time.process_time()
    clusters = multicut(costs)
    assert time.process_time() - start < 10
    assert ari(labels, clusters) > 0.8


def test_embeddings_trained_by_absolute_margins_cluster_without_the_number_of_clusters() -> None:
    """Digits, 10 epochs: k-means recovers the classes, and a threshold between the margins about their number."""
    pixels, classes = load_digits(return_X_y=True)
    inputs, labels = torch.from_numpy(pixels / 16).float(), torch.from_numpy(classes)
    torch.manual_seed(0)
    train, test = torch.randperm(len(labels)).split([len(labels) - 300, 300])
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    term, optimiser = Triplets("absolute"), torch.optim.Adam(net.parameters(), 1e-3)
    for epoch in range(10):
        for positions in PK(8)(labels[train], 64, torch.Generator().manual_seed(epoch)):
            batch_samples = train[positions]
            outputs = Outputs(None, {"embedding": net(inputs[batch_samples])})
            optimiser.zero_grad()
            term(outputs, None, Batch(inputs[batch_samples], labels[batch_samples], batch_samples, None)).backward()
            optimiser.step()
    embeddings = net(inputs[test])
    clusters, costs = k_means(embeddings, 10), cut_costs(pair_distances(embeddings))
    cut = multicut(costs)
    assert nmi(labels[test], clusters) > 0.85
    assert abs(len(cut.unique()) - 10) <= 5
    assert nmi(labels[test], cut) > 0.85
    assert multicut_objective(costs, cut) <= multicut_objective(costs, clusters)


# --- k-means


def test_k_means_finds_separate_clusters_deterministically() -> None:
    embeddings, labels = blobs(90, 5, 0.2)
    clusters = k_means(embeddings, 5)
    assert clusters.dtype == torch.int64
    assert ari(labels, clusters) == 1
    assert torch.equal(clusters, labels)  # numbered in order of first members
    overlapping = blobs(90, 5, 1.0)[0]
    assert torch.equal(k_means(overlapping, 5, seed=3), k_means(overlapping, 5, seed=3))


def test_k_means_with_fewer_points_than_clusters() -> None:
    assert k_means(torch.zeros(6, 2), 4).tolist() == [0] * 6
    assert k_means(torch.arange(3.0)[:, None], 4).tolist() == [0, 1, 2]


# --- agreement


def test_agreement_does_not_depend_on_cluster_numbers() -> None:
    labels, clusters = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([7, 7, 3, 3, 5, 5])
    assert nmi(labels, clusters) == pytest.approx(1)
    assert ari(labels, clusters) == 1
    assert matched_accuracy(labels, clusters) == 1
    assert variation_of_information(labels, clusters) == (0, 0)


def test_agreement_scores_of_a_split_and_of_a_merge() -> None:
    classes, halves = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1])
    assert variation_of_information(classes, halves) == (
        pytest.approx(1),
        pytest.approx(0),
    )  # one bit: a class is split
    assert variation_of_information(halves, classes) == (pytest.approx(0), pytest.approx(1))
    assert matched_accuracy(classes, halves) == 0.5
    assert matched_accuracy(halves, classes) == 0.5
    assert nmi(classes, halves) == 0
    four = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert nmi(four, four // 2) == pytest.approx(1 / ((2 + 1) / 2))
    assert ari(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])) == pytest.approx(-0.5)


def test_accuracy_uses_the_best_one_to_one_matching() -> None:
    """A majority vote would assign class 0 to both clusters, with 5 of 8 correct."""
    labels, clusters = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 0, 0, 1])
    assert matched_accuracy(labels, clusters) == 0.5
    assert matched_accuracy(torch.tensor([0, 0, 1, 1]), torch.arange(4)) == 0.5


def test_variation_of_information_against_its_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, clusters = torch.randint(0, 4, (2, 300), generator=generator)

    def entropy(values: Tensor) -> float:
        p = torch.bincount(values).double() / len(values)
        return float(-(p * p.log2()).nan_to_num().sum())

    joint_entropy = entropy(labels * 4 + clusters)
    split, merge = variation_of_information(labels, clusters)
    assert split == pytest.approx(joint_entropy - entropy(labels))
    assert merge == pytest.approx(joint_entropy - entropy(clusters))


def test_unlabelled_samples_are_ignored() -> None:
    labels, clusters = torch.tensor([0, 0, 1, -1, -1]), torch.tensor([1, 1, 0, 1, 4])
    assert (nmi(labels, clusters), ari(labels, clusters), matched_accuracy(labels, clusters)) == (1, 1, 1)
    no_labels = torch.full((5,), -1)
    scores = [nmi(no_labels, clusters), ari(no_labels, clusters), matched_accuracy(no_labels, clusters)]
    assert all(math.isnan(score) for score in [*scores, *variation_of_information(no_labels, clusters)])
    with pytest.raises(ValueError, match=r"\(3,\).*\(5,\)"):
        nmi(labels[:3], clusters)
