"""Parzen scores and their bandwidth: loops in float64, limits of the bandwidth, the leave-one-out rule, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tutelage.attacks import PGD
from tutelage.data.batch import Batch
from tutelage.methods.pnn.scores import (
    NOTHING,
    ParzenCrossEntropy,
    leave_one_out_log_scores,
    leave_one_out_sigma,
    parzen_cross_entropy,
    parzen_log_scores,
)
from tutelage.methods.pnn.surgery.pnn import ParzenHead
from tutelage.models.outputs import Outputs


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


EXEMPLARS = normal(3, 4, 5)
PRESENT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()


def score(point: list[float], label: int, sigma: float, without: int | None = None) -> float:
    rows = [k for k in range(4) if PRESENT[label, k] and k != without]
    kernels = [
        math.exp(-sum((a - b) ** 2 for a, b in zip(point, EXEMPLARS[label, k].tolist(), strict=True)) / (2 * sigma**2))
        for k in rows
    ]
    return sum(kernels) / len(kernels) if kernels else 0.0


def test_scores_equal_plain_loops_and_are_in_0_to_1() -> None:
    points = normal(6, 5, seed=1)
    scores = parzen_log_scores(points, EXEMPLARS, PRESENT, 0.8).exp()
    expected = [[score(point, label, 0.8) for label in range(3)] for point in points.tolist()]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))
    assert scores.min() > 0
    assert scores.max() <= 1
    own = parzen_log_scores(EXEMPLARS[2, :1], EXEMPLARS, PRESENT, 0.8)
    assert own[0, 2] == 0  # S = 1 at the only exemplar of a class
    assert parzen_log_scores(1e3 * points, EXEMPLARS, PRESENT, 0.8).exp().max() == 0  # and 0 far away


def test_one_exemplar_per_class_is_the_nearest_neighbour() -> None:
    exemplars, points = normal(7, 1, 5), normal(50, 5, seed=2)
    nearest = torch.cdist(points, exemplars[:, 0]).argmin(1)
    for sigma in (1e-3, 1.0, 50.0):
        scores = parzen_log_scores(points, exemplars, torch.ones(7, 1).bool(), sigma)
        assert torch.equal(scores.argmax(1), nearest)


def test_limits_of_the_bandwidth() -> None:
    points = normal(50, 5, seed=2)
    flat, labels = EXEMPLARS[PRESENT], torch.arange(3)[:, None].expand(3, 4)[PRESENT]
    small = parzen_log_scores(points, EXEMPLARS, PRESENT, 1e-3)
    assert torch.equal(small.argmax(1), labels[torch.cdist(points, flat).argmin(1)])
    large = parzen_log_scores(points, EXEMPLARS, PRESENT, 1e7).softmax(1)
    torch.testing.assert_close(large, torch.full_like(large, 1 / 3), atol=1e-9, rtol=0)


def test_leave_one_out_excludes_the_exemplar_itself() -> None:
    scores = leave_one_out_log_scores(EXEMPLARS, PRESENT, 0.8)
    rows = PRESENT.nonzero().tolist()
    for values, (label, k) in zip(scores, rows, strict=True):
        for other in range(3):
            expected = score(EXEMPLARS[label, k].tolist(), other, 0.8, without=k if other == label else None)
            assert float(values[other].exp()) == pytest.approx(expected)
    # With itself, every label fits for a small bandwidth, random ones included; without, chance level is left.
    noise = normal(4, 50, 3, seed=3)
    everything = torch.ones(4, 50, dtype=torch.bool)
    labels = torch.arange(4).repeat_interleave(50)
    with_itself = parzen_log_scores(noise.flatten(0, 1), noise, everything, 1e-2).argmax(1)
    without = leave_one_out_log_scores(noise, everything, 1e-2).argmax(1)
    assert torch.equal(with_itself, labels)
    assert float((without == labels).float().mean()) < 0.4


def smoothed_loss(exemplars: Tensor, present: Tensor, sigma: float) -> float:
    scores = leave_one_out_log_scores(exemplars, present, sigma)
    labels = present.nonzero()[:, 0]
    classes, n = scores.shape[1], len(scores)
    targets = (n * nn.functional.one_hot(labels, classes).double() + 1 / classes) / (n + 1)
    return -float((targets * scores.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("distance", [0.5, 3.0, 100.0])
def test_the_bandwidth_has_the_largest_leave_one_out_likelihood(distance: float) -> None:
    exemplars = normal(3, 30, 4) + distance * torch.eye(3, 4).double()[:, None]
    present = torch.ones(3, 30, dtype=torch.bool)
    sigma = leave_one_out_sigma(exemplars.float(), present)
    best = smoothed_loss(exemplars, present, sigma)
    others = [smoothed_loss(exemplars, present, sigma * 1.05**step) for step in (-60, -20, -5, -1, 1, 5, 20, 60)]
    assert best <= min(others) + 1e-6
    assert leave_one_out_sigma(10 * exemplars, present) == pytest.approx(10 * sigma, rel=1e-2)


def test_the_bandwidth_of_exemplars_that_say_nothing_is_1() -> None:
    assert leave_one_out_sigma(torch.ones(3, 4, 5), torch.ones(3, 4, dtype=torch.bool)) == 1
    assert leave_one_out_sigma(normal(3, 1, 5), torch.ones(3, 1, dtype=torch.bool)) == 1


def test_loss_has_closed_forms() -> None:
    scores = torch.tensor([[0.0, -1e3], [0.0, 0.0], [-700.0, -800.0]], dtype=torch.float64)
    loss = parzen_cross_entropy(scores, torch.tensor([0, 0, 0]), 0.25)
    assert loss.tolist() == pytest.approx([math.log(1.25), math.log(2.25), 700 + math.log(0.25)])
    assert parzen_cross_entropy(scores, torch.tensor([0, 1, 1])).tolist() == pytest.approx([0, math.log(2), 100])
    nothing = torch.tensor([[NOTHING, -1.0], [-1.0, -2.0]])
    assert parzen_cross_entropy(nothing, torch.tensor([0, -1]), 0.1).tolist() == [0, 0]
    soft = torch.tensor([[0.2, 0.8]])
    assert torch.equal(parzen_cross_entropy(scores[:1], soft), parzen_cross_entropy(scores[:1], torch.tensor([1])))


def test_gradients_reach_the_embedding_alone() -> None:
    points, labels = normal(4, 5, seed=1).requires_grad_(), torch.tensor([0, 1, 2, 1])

    def loss(h: Tensor) -> Tensor:
        return parzen_cross_entropy(parzen_log_scores(h, EXEMPLARS, PRESENT, 0.8), labels, 1e-3)

    assert torch.autograd.gradcheck(loss, points)
    at_exemplar = EXEMPLARS[0, :1].clone().requires_grad_()  # at a distance of 0 the gradient is finite
    loss_there = parzen_log_scores(at_exemplar, EXEMPLARS, PRESENT, 0.8).sum()
    (gradient,) = torch.autograd.grad(loss_there, at_exemplar)
    assert gradient.isfinite().all()


def test_the_term_excludes_each_sample_from_its_own_score() -> None:
    head = ParzenHead(3, 4, 5)
    head.exemplars.copy_(EXEMPLARS)
    head.present.copy_(PRESENT)
    index = torch.where(PRESENT, torch.arange(12).view(3, 4), -1)
    term = ParzenCrossEntropy(head, index, 0.01)
    assert [*term.parameters()] == []
    points, labels = EXEMPLARS[PRESENT].float(), PRESENT.nonzero()[:, 0]
    batch = Batch(torch.zeros(8, 1), labels, index[PRESENT], None)
    values = term(Outputs(None, {"embedding": points}), None, batch)
    expected = parzen_cross_entropy(leave_one_out_log_scores(EXEMPLARS.float(), PRESENT, 1.0), labels, 0.01)
    torch.testing.assert_close(values, expected)
    assert values[-1] == 0  # the only exemplar of its class
    other = term(
        Outputs(None, {"embedding": points}), None, Batch(torch.zeros(8, 1), labels, index[PRESENT] + 90, None)
    )
    assert (other[:-1] < values[:-1]).all()


class Exponentials(nn.Module):
    """The scores themselves, which underflow, in place of their logarithms."""

    def __init__(self, head: ParzenHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.head(inputs).exp()
        return scores


def test_logarithms_have_a_gradient_where_scores_underflow() -> None:
    """More than 14 sigma away S is 0 in float32: an attack on it is blind, one on the logits is not."""
    head = ParzenHead(2, 1, 3)
    head.exemplars.copy_(torch.tensor([[[0.1] * 3], [[0.9] * 3]]))
    head.sigma.fill_(0.01)
    inputs, labels = torch.full((4, 3), 0.45), torch.zeros(4, dtype=torch.int64)
    attack = PGD(radius=0.1, steps=20, loss="margin")
    assert attack.blind(Exponentials(head), inputs, labels).all()
    assert not attack.blind(head, inputs, labels).any()
    assert (head(attack(head, inputs, labels)).argmax(1) == 1).all()
