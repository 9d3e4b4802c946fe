"""Which samples are labelled next."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.methods.minority_al import acquire
from tutelage.methods.minority_al.acquisition import (
    SCORES,
    Candidates,
    allocation,
    by_expected_deficit,
    by_minority,
    deficits,
    k_centre,
)

DEFAULTS: dict[str, Any] = {"query": "minority", "share": 1.0, "rank": "certain", "base": "margin", "explore": 0.1}


def make(probabilities: Tensor, counts: list[int], seed: int = 0, features: Any = None) -> Candidates:
    order = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(seed))
    return Candidates(probabilities, torch.tensor(counts), order, features)


def random_probabilities(size: int, classes: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def certain_of(predicted: list[int], classes: int, confidence: float = 0.9) -> Tensor:
    rows = torch.full((len(predicted), classes), (1 - confidence) / (classes - 1))
    rows[torch.arange(len(predicted)), torch.tensor(predicted)] = confidence
    return rows


def free(candidates: Candidates) -> Tensor:
    return torch.ones(len(candidates.order), dtype=torch.bool)


# --- how many of each class


def test_allocation_of_a_computed_example() -> None:
    counts = torch.tensor([50, 10, 0, 4])  # mean 16
    assert (deficits(counts) / 4).tolist() == [0, 6, 16, 12]
    assert allocation(counts, 17).tolist() == [0, 3, 8, 6]


@pytest.mark.parametrize("number", [1, 3, 5, 16])
def test_allocation_equals_exact_shares_rounded(number: int) -> None:
    counts = [9, 4, 0, 7, 1, 30]
    missing = [max(0.0, sum(counts) / 6 - count) for count in counts]
    exact = [number * d / sum(missing) for d in missing]
    parts = [math.floor(e) for e in exact]
    for label in sorted(range(6), key=lambda c: parts[c] - exact[c])[: number - sum(parts)]:
        parts[label] += 1
    assert allocation(torch.tensor(counts), number).tolist() == parts


def test_no_class_gets_more_than_balances_the_labels() -> None:
    assert allocation(torch.tensor([4, 2, 3]), 3).tolist() == [0, 2, 1]
    assert allocation(torch.tensor([4, 2, 2]), 4).tolist() == [0, 2, 2]
    assert allocation(torch.tensor([9, 4, 0, 7, 1, 30]), 129).tolist() == [21, 26, 30, 23, 29, 0]
    assert allocation(torch.tensor([3, 2, 3]), 1).tolist() == [0, 1, 0]


def test_balanced_labels_have_no_deficit() -> None:
    assert allocation(torch.tensor([5, 5, 5]), 7).tolist() == [0, 0, 0]


# --- which of them


@pytest.mark.parametrize("query", ["minority", "soft"])
def test_requests_of_a_class_without_candidates_are_not_given_to_other_classes(query: Any) -> None:
    predicted = [0] * 40 + [1] * 40 + [3] * 40  # none as class 2
    candidates = make(certain_of(predicted, 4), [50, 10, 0, 4])
    chosen = by_minority(candidates, free(candidates), 17, "certain")
    assert candidates.predicted[chosen].bincount(minlength=4).tolist() == [0, 3, 0, 6]
    indices, intended = acquire(candidates, 17, **DEFAULTS | {"query": query, "explore": 0.0})
    assert len(indices.unique()) == 17
    if query == "minority":
        assert intended[intended >= 0].bincount(minlength=4).tolist() == [0, 3, 0, 6]  # the base chooses eight


@pytest.mark.parametrize(("rank", "expected"), [("certain", [3, 2]), ("uncertain", [0, 1])])
def test_rank_within_a_predicted_class(rank: Any, expected: list[int]) -> None:
    first = torch.tensor([0.5, 0.6, 0.8, 0.9, 0.99])
    probabilities = torch.stack([1 - first, first], 1)
    probabilities[0] = torch.tensor([0.49, 0.51])
    probabilities[4] = torch.tensor([0.99, 0.01])  # the other class
    candidates = make(probabilities, [5, 2])
    assert by_minority(candidates, free(candidates), 2, rank).tolist() == expected


def test_expected_deficit_equals_plain_loops() -> None:
    probabilities, counts = random_probabilities(30, 4), [7, 1, 0, 3]
    candidates = make(probabilities, counts)
    missing = [max(0.0, sum(counts) / 4 - count) for count in counts]
    scores = [sum(p * d for p, d in zip(row, missing, strict=True)) / sum(missing) for row in probabilities.tolist()]
    best = sorted(range(30), key=lambda index: -scores[index])[:6]
    assert by_expected_deficit(candidates, free(candidates), 6).tolist() == best


def test_base_scores_equal_plain_loops() -> None:
    probabilities = random_probabilities(20, 3)
    candidates = make(probabilities, [1, 1, 1])
    for row, margin, least, entropy in zip(
        probabilities.tolist(),
        *(SCORES[name](candidates).tolist() for name in ("margin", "least_confidence", "entropy")),
        strict=True,
    ):
        third, second, first = sorted(row)
        assert margin == pytest.approx(second - first, abs=1e-6)
        assert least == pytest.approx(-first, abs=1e-6)
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in (first, second, third)), abs=1e-6)


def test_k_centre_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labelled = torch.randn(25, 3, generator=generator), torch.randn(4, 3, generator=generator)
    candidates = make(random_probabilities(25, 2), [2, 2], features=(features, labelled))
    available = free(candidates)
    available[3] = False
    centres, expected = list(labelled), []
    for _ in range(6):
        distances = [min(float((f - centre).norm()) for centre in centres) for f in features]
        distances[3] = -1.0
        nearest = max(range(25), key=distances.__getitem__)
        expected.append(nearest)
        centres.append(features[nearest])
    assert k_centre(candidates, available, 6).tolist() == expected
    assert len(k_centre(candidates, available, 100)) == 24


# --- a whole round


@pytest.mark.parametrize("query", ["minority", "soft", "base"])
@pytest.mark.parametrize("base", ["random", "least_confidence", "margin", "entropy", "k_centre"])
@pytest.mark.parametrize("counts", [[9, 3, 0, 1], [5, 5, 5, 5]])
def test_requests_are_distinct_candidates(query: Any, base: Any, counts: list[int]) -> None:
    features = (torch.randn(30, 2), torch.randn(5, 2))
    candidates = make(random_probabilities(30, 4), counts, features=features)
    for number in (1, 7, 30):
        indices, intended = acquire(candidates, number, **DEFAULTS | {"query": query, "base": base, "share": 0.7})
        assert len(indices) == len(intended) == len(indices.unique()) == number
        assert set(indices.tolist()) <= set(range(30))
        is_intended = intended >= 0
        assert torch.equal(intended[is_intended], candidates.predicted[indices[is_intended]])


@pytest.mark.parametrize("query", ["minority", "soft", "base"])
@pytest.mark.parametrize("base", ["random", "margin", "entropy", "least_confidence"])
def test_even_predictions_give_random_requests(query: Any, base: Any) -> None:
    candidates = make(torch.full((30, 4), 0.25), [9, 3, 0, 1], seed=3)
    indices, _ = acquire(candidates, 8, **DEFAULTS | {"query": query, "base": base})
    assert torch.equal(indices, candidates.order[:8])


def test_balanced_labels_give_the_base_acquisition() -> None:
    candidates = make(random_probabilities(30, 3), [4, 4, 4])
    results = [acquire(candidates, 9, **DEFAULTS | {"query": query})[0] for query in ("minority", "soft", "base")]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


def test_random_requests_while_a_class_has_no_label() -> None:
    probabilities = certain_of([0] * 20 + [1] * 20, 3)
    for counts, explored in (([9, 3, 0], 4), ([9, 3, 1], 0)):
        candidates = make(probabilities, counts)
        indices, intended = acquire(candidates, 10, **DEFAULTS | {"explore": 0.4, "share": 0.5})
        assert torch.equal(indices[:explored], candidates.order[:explored])
        assert (intended[:explored] == -1).all()
        assert (intended[explored:] == 1).any()


def test_perfect_predictions_balance_the_labels_exactly() -> None:
    classes = torch.arange(4).repeat_interleave(torch.tensor([60, 25, 12, 10]))
    counts, rows = torch.tensor([12, 4, 2, 2]), torch.arange(len(classes))
    variations = []
    for _ in range(7):
        candidates = make(certain_of(classes[rows].tolist(), 4), counts.tolist())
        chosen, _ = acquire(candidates, 4, **DEFAULTS)
        counts += classes[rows[chosen]].bincount(minlength=4)
        rows = rows[~torch.isin(torch.arange(len(rows)), chosen)]
        variations.append(float(counts.double().std() / counts.double().mean()))
    assert counts.tolist() == [12, 12, 12, 12]
    assert variations == sorted(variations, reverse=True)
