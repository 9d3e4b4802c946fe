"""Boundary supporting samples: target classes and the selection of samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.attacks.boundary import selected_by_loops
from tutelage.attacks import draw_targets
from tutelage.attacks.boundary import select_samples


def test_targets_are_drawn_by_teacher_probabilities() -> None:
    q = torch.tensor([0.2, 0.5, 0.1, 0.2])
    targets = draw_targets(q.log().expand(100_000, 4), torch.ones(100_000).long())
    gap = targets.bincount(minlength=4) / 100_000
    torch.testing.assert_close(gap, torch.tensor([0.4, 0.0, 0.2, 0.4]), rtol=0, atol=0.01)
    torch.testing.assert_close(gap, torch.tensor([0.4, 0.0, 0.2, 0.4]), rtol=0.02, atol=0)


@pytest.mark.parametrize("confidence", [40.0, 1e4, 3e38])
def test_base_class_is_never_drawn(confidence: float) -> None:
    logits = torch.tensor([0.0, confidence, 1.0])
    assert float(logits.softmax(0)[1]) == 1.0
    targets = draw_targets(logits.expand(100_000, 3), torch.ones(100_000).long())
    gap = targets.bincount(minlength=3) / 100_000
    expected = 1 / (1 + math.e)
    torch.testing.assert_close(gap, torch.tensor([expected, 0.0, 1 - expected]), rtol=0, atol=0.01)


def test_target_of_two_classes_is_the_other() -> None:
    base = torch.tensor([0, 1, 1, 0])
    assert torch.equal(draw_targets(torch.randn(4, 2) * 50, base), 1 - base)


def test_targets_are_drawn_per_sample() -> None:
    logits = torch.full((50, 6), -1e4)
    base, other = torch.arange(50) % 6, (torch.arange(50) + 2) % 6
    logits[torch.arange(50), base], logits[torch.arange(50), other] = 5.0, 0.0
    assert torch.equal(draw_targets(logits.requires_grad_(), base), other)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 5, 16, 64])
def test_correct_samples_with_largest_disagreement_are_selected(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    student, teacher, labels = 2 * torch.randn(64, 4), 2 * torch.randn(64, 4), torch.randint(4, (64,))
    for logits in (student, teacher):
        logits[torch.arange(64), labels] += 2
    labels[:8] = -1
    expected = selected_by_loops(student, teacher, labels, count)
    indices, _, counts = select_samples(student, teacher, labels, count)
    assert indices.shape == counts.shape == (count,)
    assert indices[counts].tolist() == expected
    assert counts.tolist() == [True] * len(expected) + [False] * (count - len(expected))
    assert set(indices.tolist()) <= set(expected)  # the repeated sample is one of them
    if count == 64:
        assert 8 < len(expected) < 56


@pytest.mark.parametrize("network", ["student", "teacher", "both", "nobody knows the label"])
def test_no_sample_counts_if_none_qualifies(network: str) -> None:
    correct_logits, labels = F.one_hot(torch.arange(6) % 3, 3).float(), torch.arange(6) % 3
    wrong_logits = correct_logits.roll(1, dims=1)
    student = wrong_logits if network in ("student", "both") else correct_logits
    teacher = wrong_logits if network in ("teacher", "both") else correct_logits
    if network == "nobody knows the label":
        labels = torch.full((6,), -1)
    indices, _, counts = select_samples(student, teacher, labels, 4)
    assert not counts.any()
    assert ((indices >= 0) & (indices < 6)).all()


def test_single_qualifying_sample_is_repeated_and_counts_once() -> None:
    correct, labels = F.one_hot(torch.arange(6) % 3, 3).float(), torch.arange(6) % 3
    teacher = correct.roll(1, dims=1)
    teacher[4] = correct[4]
    indices, _, counts = select_samples(correct, teacher, labels, 3)
    assert indices.tolist() == [4, 4, 4]
    assert counts.tolist() == [True, False, False]
