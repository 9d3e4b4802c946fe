"""Risk and coverage: against loops over every order of tied samples, scikit-learn, and values worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor

from tutelage.evaluation import abstain_probability, aurc, risk_coverage, selection_score
from tutelage.evaluation.selective import certainty


def draw(samples: int, classes: int = 5, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (samples,), generator=generator)


def risks_one_by_one(confidence: list[float], is_wrong: list[bool]) -> list[float]:
    """The risk at each coverage, averaged over all orders of equally confident samples."""
    samples = range(len(is_wrong))
    orders = [o for o in permutations(samples) if all(confidence[a] >= confidence[b] for a, b in pairwise(o))]
    return [
        sum(sum(is_wrong[i] for i in order[:k]) / k for order in orders) / len(orders)
        for k in range(1, len(is_wrong) + 1)
    ]


def test_risk_coverage_by_hand() -> None:
    """By descending confidence: right, wrong, right. The risks are 0, 1/2, 1/3."""
    logits = torch.tensor([[1.0, 0.0], [9.0, 0.0], [5.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    curve = risk_coverage(logits, labels)
    torch.testing.assert_close(curve.coverage, torch.tensor([1 / 3, 2 / 3, 1.0]))
    torch.testing.assert_close(curve.risk, torch.tensor([0.0, 1 / 2, 1 / 3]))
    assert float(aurc(logits, labels)) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_the_mean_over_all_orders(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(3, (6,), generator=generator)
    logits = torch.stack([level, torch.zeros(6, dtype=torch.int64)], 1).double()
    labels = torch.randint(2, (6,), generator=generator)
    expected = risks_one_by_one(level.tolist(), (logits.argmax(1) != labels).tolist())
    assert risk_coverage(logits, labels).risk.tolist() == pytest.approx(expected)


def test_risk_equals_scikit_learn_at_every_coverage() -> None:
    logits, labels = draw(200)
    order = logits.softmax(1).amax(1).argsort(descending=True)
    curve = risk_coverage(logits, labels)
    predicted, true = logits.argmax(1)[order].numpy(), labels[order].numpy()
    expected = [1 - accuracy_score(true[:k], predicted[:k]) for k in range(1, 201)]
    assert curve.risk.tolist() == pytest.approx(expected)
    assert curve.coverage.tolist() == pytest.approx([k / 200 for k in range(1, 201)])
    assert float(aurc(logits, labels)) == pytest.approx(sum(expected) / 200)
    assert float(curve.risk[-1]) == pytest.approx(1 - accuracy_score(labels.numpy(), logits.argmax(1).numpy()))


def test_result_does_not_depend_on_the_order_of_samples_or_classes() -> None:
    logits, labels = draw(60)
    logits = torch.cat([logits, logits[:30] + 3.0]).float()  # the added constant does not change probabilities
    labels = torch.cat([labels, (labels[:30] + 1) % 5])
    before = risk_coverage(logits, labels)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([3, 0, 4, 1, 2])  # class c moves to index classes.argsort()[c]
    shuffled = risk_coverage(logits[order], labels[order])
    permuted = risk_coverage(logits[:, classes], classes.argsort()[labels])
    for after in (shuffled, permuted):
        torch.testing.assert_close(after.risk, before.risk)


def test_perfect_ranking_has_the_closed_form() -> None:
    """With m of n wrong and ranked last, the risk at k is (k - (n - m))+ / k; this area is minimal."""
    n, m = 50, 12
    ranking = torch.arange(n, 0, -1.0)
    logits = torch.stack([ranking, torch.zeros(n)], 1)
    labels = (torch.arange(n) >= n - m).long()
    expected = [max(0, k - (n - m)) / k for k in range(1, n + 1)]
    assert risk_coverage(logits, labels).risk.tolist() == pytest.approx(expected)
    best = float(aurc(logits, labels))
    for seed in range(3):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        assert float(aurc(logits, labels[order])) > best
    # Geifman, Uziel, El-Yaniv: about r + (1 - r) ln(1 - r)
    assert best == pytest.approx(m / n + (1 - m / n) * math.log(1 - m / n), abs=0.01)


def test_aurc_of_a_constant_network_is_its_error_rate() -> None:
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 1])
    assert risk_coverage(torch.zeros(7, 3), labels).risk.tolist() == pytest.approx([4 / 7] * 7)


def test_probabilities_that_round_to_1_are_still_ranked() -> None:
    logits = torch.tensor([[100.0, 0.0], [200.0, 0.0], [150.0, 0.0]])
    assert logits.softmax(1).amax(1).tolist() == [1.0] * 3
    torch.testing.assert_close(risk_coverage(logits, torch.tensor([1, 0, 0])).risk, torch.tensor([0.0, 0.0, 1 / 3]))


def test_certainty_is_the_log_odds() -> None:
    logits, _ = draw(50)
    top = logits.softmax(1).amax(1)
    torch.testing.assert_close(certainty(logits), (top / (1 - top)).log())
    assert certainty(torch.tensor([[3.0]])).tolist() == [math.inf]
    assert float(certainty(torch.zeros(1, 2))[0]) == 0


def test_unlabelled_samples_are_ignored() -> None:
    logits, labels = draw(20)
    with_more = torch.cat([logits, 100 * logits]), torch.cat([labels, torch.full((20,), -1)])
    assert torch.equal(risk_coverage(*with_more).risk, risk_coverage(logits, labels).risk)
    unlabelled = risk_coverage(logits, torch.full((20,), -1))
    assert unlabelled.coverage.shape == unlabelled.risk.shape == (0,)
    assert math.isnan(aurc(logits, torch.full((20,), -1)))


def test_half_precision_is_computed_in_float32() -> None:
    logits, labels = draw(30)
    half = logits.to(torch.bfloat16)
    assert risk_coverage(half, labels).risk.dtype == torch.float32
    assert torch.equal(risk_coverage(half, labels).risk, risk_coverage(half.float(), labels).risk)


def test_invalid_shapes_and_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5,\)"):
        risk_coverage(torch.zeros(4, 3), torch.zeros(5).long())
    with pytest.raises(ValueError, match=r"labels must lie in -1 \.\. 2"):
        aurc(torch.zeros(2, 3), torch.tensor([0, 3]))


# --- other scores, and risk at given coverages


def test_score_replaces_the_probability_in_the_ranking() -> None:
    logits, labels = draw(100)
    right = (logits.argmax(1) == labels).double()
    curve = risk_coverage(logits, labels, right)  # an oracle score: all errors rank last
    errors = int(100 - right.sum())
    assert curve.risk[: 100 - errors].tolist() == [0.0] * (100 - errors)
    assert float(curve.risk[-1]) == pytest.approx(errors / 100)
    assert float(curve.excess_area) == pytest.approx(0, abs=1e-12)
    assert torch.equal(risk_coverage(logits, labels, certainty(logits)).risk, risk_coverage(logits, labels).risk)


@pytest.mark.parametrize("seed", range(3))
def test_risk_at_full_coverage_is_the_error_for_any_score(seed: int) -> None:
    logits, labels = draw(70, seed=seed)
    error = 1 - float((logits.argmax(1) == labels).double().mean())
    score = torch.rand(70, generator=torch.Generator().manual_seed(seed))
    assert float(risk_coverage(logits, labels, score).risk[-1]) == pytest.approx(error)
    assert float(risk_coverage(logits, labels, -score).risk_at([1.0])[0]) == pytest.approx(error)


def test_risk_at_coverages() -> None:
    """Coverages select the 40, 36 and 32 most confident of 40 samples, and at least one."""
    logits, labels = draw(40)
    curve = risk_coverage(logits, labels)
    order = certainty(logits).argsort(descending=True)
    is_wrong = (logits.argmax(1) != labels)[order].double()
    expected = [float(is_wrong[:selected].mean()) for selected in (40, 36, 32, 1)]
    assert curve.risk_at([1.0, 0.9, 0.8, 0.001]).tolist() == pytest.approx(expected)
    assert curve.risk_at([]).shape == (0,)
    for coverage in (0.0, 1.1, -0.5, math.nan):
        with pytest.raises(ValueError, match="coverages"):
            curve.risk_at([1.0, coverage])


def test_excess_area_is_the_difference_from_a_perfect_ranking() -> None:
    logits, labels = draw(60)
    curve = risk_coverage(logits, labels)
    is_wrong = sorted((logits.argmax(1) != labels).tolist())
    best = sum(sum(is_wrong[:k]) / k for k in range(1, 61)) / 60
    assert float(curve.excess_area) == pytest.approx(float(curve.area) - best)
    assert float(curve.excess_area) > 0


def test_curve_without_labels_is_nan_and_invalid_scores_are_refused() -> None:
    logits, labels = draw(20)
    unlabelled = risk_coverage(logits, torch.full((20,), -1), torch.arange(20.0))
    assert unlabelled.risk_at([0.5, 1.0]).isnan().all()
    assert math.isnan(unlabelled.excess_area)
    half = torch.cat([labels[:10], torch.full((10,), -1)])
    score = torch.arange(20.0)
    assert torch.equal(
        risk_coverage(logits, half, score).risk, risk_coverage(logits[:10], labels[:10], score[:10]).risk
    )
    with pytest.raises(ValueError, match=r"must have shape \(20,\), one value per sample, got shape \(19,\)"):
        risk_coverage(logits, labels, torch.zeros(19))
    with pytest.raises(ValueError, match="NaN"):
        risk_coverage(logits, labels, torch.full((20,), math.nan))


def test_abstain_probability_and_its_log_odds() -> None:
    logits, _ = draw(50)
    abstain = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    probability = abstain_probability(logits, abstain)
    torch.testing.assert_close(probability, abstain[:, 0].exp() / (logits.exp().sum(1) + abstain[:, 0].exp()))
    torch.testing.assert_close(selection_score(logits, abstain), ((1 - probability) / probability).log())
    extreme = torch.tensor([[200.0, 0.0], [100.0, 0.0]])
    assert abstain_probability(extreme, torch.zeros(2, 1)).tolist() == [0.0, pytest.approx(0, abs=1e-40)]
    assert selection_score(extreme, torch.zeros(2, 1)).argsort(descending=True).tolist() == [0, 1]
