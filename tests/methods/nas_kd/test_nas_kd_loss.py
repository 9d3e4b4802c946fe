"""The loss of heads and layers, and the expected size."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.methods.nas_kd.candidates import relative_costs
from tutelage.methods.nas_kd.loss import ExpectedSize, Heads, distilled_heads, layer_weights
from tutelage.models.outputs import Outputs

LOSSES = (1.5, 0.9, 0.2)


def logits(count: int, seed: int = 0) -> Tensor:
    """Of ``count`` heads or layers for five samples and four classes."""
    return torch.randn(count, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.tensor([0, 3, 1, -1, 2])


def test_layers_are_spread_over_heads_and_better_ones_count_more() -> None:
    weights = layer_weights(3, LOSSES)
    assert weights[0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]  # one cell: the last layer
    first, last = math.exp(-0.9), math.exp(-0.2)  # two cells: ceil(3 / 2) = 2 and 3
    torch.testing.assert_close(weights[1, 0], torch.tensor([0, first / (first + last), 0]))
    torch.testing.assert_close(weights[1, 1], torch.tensor([0, 0, last / (first + last)]))
    shares = torch.tensor([math.exp(-loss) for loss in LOSSES])
    torch.testing.assert_close(weights[2], torch.diag(shares / shares.sum()))
    torch.testing.assert_close(layer_weights(8, LOSSES).sum((1, 2)), torch.ones(8))


@pytest.mark.parametrize(("gamma", "temperature"), [(0.8, 5.0), (0.0, 1.0), (1.0, 2.0)])
def test_loss_equals_plain_loops(gamma: float, temperature: float) -> None:
    heads, probes = logits(2), logits(3, 1)
    weights = layer_weights(2, LOSSES).double()
    losses = distilled_heads(heads, probes, TARGETS, weights, gamma, temperature)
    for k in (1, 2):
        for sample in range(5):
            expected = 0.0
            for i in range(k):
                label = int(TARGETS[sample])
                if label >= 0:
                    expected += (1 - gamma) / k * -math.log(_softmax(heads[i, sample].tolist(), 1.0)[label])
                p = _softmax(heads[i, sample].tolist(), temperature)
                for j in range(3):
                    q = _softmax(probes[j, sample].tolist(), temperature)
                    divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
                    expected += gamma * float(weights[k - 1, i, j]) * temperature**2 * divergence
            assert float(losses[k - 1, sample]) == pytest.approx(expected, rel=1e-6)


def _softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def test_teacher_part_is_zero_for_equal_logits_and_else_the_cross_entropy_without_the_entropy() -> None:
    probes = logits(1)
    weights = layer_weights(1, LOSSES[:1]).double()
    equal = distilled_heads(probes, probes, TARGETS, weights, 1.0, 5.0)
    assert equal.abs().max() == 0
    heads = logits(1, 2)
    q = probes[0].softmax(1)
    entropy = -(q * q.log()).sum(1)
    cross_entropy = -(q * heads[0].log_softmax(1)).sum(1)
    losses = distilled_heads(heads, probes, TARGETS, weights, 1.0, 1.0)
    torch.testing.assert_close(cross_entropy - losses[0], entropy)


def test_gradient_reaches_heads_and_no_probes() -> None:
    heads, probes = logits(2).requires_grad_(), logits(3, 1).requires_grad_()
    weights = layer_weights(2, LOSSES).double()
    distilled_heads(heads, probes, TARGETS, weights, 0.8, 5.0)[1].sum().backward()
    assert probes.grad is None
    assert heads.grad is not None
    assert (heads.grad.abs().sum((1, 2)) > 0).all()
    one = torch.autograd.functional.jacobian(
        lambda h: distilled_heads(h, probes, TARGETS, weights, 0.8, 5.0)[0], heads.detach()
    )
    assert not one[:, 1].any()  # one cell has no second head
    assert torch.autograd.gradcheck(
        lambda h: distilled_heads(h, probes.detach(), TARGETS, weights, 0.8, 5.0), heads.detach().requires_grad_()
    )


def test_expected_size_is_between_nothing_and_everything() -> None:
    term = ExpectedSize(8)
    costs = relative_costs(8)

    def size(number: int, cells: list[float]) -> float:
        operations = F.one_hot(torch.full((9,), number), 10).float()
        return float(term(Outputs(None, {"operations": operations, "cells": torch.tensor(cells)}), None, None))

    assert size(6, [0, 0, 1]) == pytest.approx(1)
    assert size(1, [0, 0, 1]) == size(0, [0, 0, 1]) == 0
    assert size(4, [1, 0, 0]) == pytest.approx(float(costs[4]) / 3)
    assert size(2, [0, 1, 0]) == pytest.approx(2 / 3 * float(costs[2]))
    alpha = torch.zeros(9, 10, requires_grad=True)
    kappa = torch.zeros(3, requires_grad=True)
    outputs = Outputs(None, {"operations": alpha.softmax(1), "cells": kappa.softmax(0)})
    term(outputs, None, None).backward()
    assert alpha.grad is not None
    assert kappa.grad is not None
    assert (alpha.grad[:, 6] > 0).all()
    assert (alpha.grad[:, 1] < 0).all()
    assert kappa.grad[2] > 0 > kappa.grad[0]


def test_heads_read_the_text_without_padding() -> None:
    torch.manual_seed(0)
    heads = Heads(1, 3, 4)
    stage, mask = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True, True, False, False, False]])
    last = torch.randn(2, 4)
    values = heads.logits([stage], mask, last)
    assert values.shape == (2, 2, 4)
    assert torch.equal(values[1], last)
    torch.testing.assert_close(heads.logits([stage[1:, :2]], mask[1:, :2], last[1:])[0], values[0, 1:])
