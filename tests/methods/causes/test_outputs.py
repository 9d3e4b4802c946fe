"""Losses without the one-sum constraint: loops in float64, closed forms, no forced winner; the noise view."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.methods.causes.outputs import (
    Background,
    OneAgainstRest,
    SquaredDistance,
    UniformNoise,
    WithBackground,
    background_cross_entropy,
    one_against_rest,
    squared_distance,
)
from tutelage.models.outputs import Outputs
from tutelage.terms.term import Term

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
ABSTAIN = torch.tensor([[0.3], [-1.0], [4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, -1])
SOFT = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_losses_equal_plain_loops(labels: Tensor) -> None:
    bce, mse, background = [], [], []
    for z, a, t in zip(LOGITS.tolist(), ABSTAIN.flatten().tolist(), SOFT.tolist(), strict=True):
        known = sum(t) > 0
        bce.append(known * -sum(math.log(sigmoid(v) if u else 1 - sigmoid(v)) for v, u in zip(z, t, strict=True)))
        mse.append(known * sum((v - u) ** 2 for v, u in zip(z, t, strict=True)))
        total = math.log(sum(map(math.exp, [*z, a])))
        background.append(known * sum(u * (total - v) for v, u in zip(z, t, strict=True)))
    assert one_against_rest(LOGITS, labels).tolist() == pytest.approx(bce)
    assert squared_distance(LOGITS, labels).tolist() == pytest.approx(mse)
    assert background_cross_entropy(LOGITS, ABSTAIN, labels).tolist() == pytest.approx(background)


def test_closed_forms_and_minima() -> None:
    zeros, label = torch.zeros(1, 4), torch.tensor([1])
    assert float(one_against_rest(zeros, label)) == pytest.approx(4 * math.log(2))
    assert float(squared_distance(zeros, label)) == 1
    assert float(background_cross_entropy(zeros, torch.zeros(1, 1), label)) == pytest.approx(math.log(5))
    assert float(background_cross_entropy(zeros, torch.zeros(1, 1), None)) == pytest.approx(math.log(5))
    assert float(background_cross_entropy(zeros, torch.full((1, 1), 50.0), None)) == pytest.approx(0, abs=1e-6)
    perfect = torch.tensor([[0.0, 1, 0, 0]])
    assert float(squared_distance(perfect, label)) == 0
    assert float(one_against_rest(100 * (2 * perfect - 1), label)) == pytest.approx(0, abs=1e-6)


def test_a_sigmoid_has_no_forced_winner_and_a_softmax_has() -> None:
    outputs = torch.full((1, 10), -3.0)
    assert outputs.sigmoid().max() < 0.05
    torch.manual_seed(0)
    for scale in (0.01, 1.0, 100.0):
        assert (scale * torch.randn(100, 10)).softmax(1).amax(1).min() >= 0.1 - 1e-6


@pytest.mark.parametrize("loss", [one_against_rest, squared_distance])
def test_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), logits)
    (gradient,) = torch.autograd.grad(loss(logits, LABELS).sum(), logits)
    assert (gradient[2] == 0).all()  # no label
    with pytest.raises(TutelageError, match="label 3 does not exist"):
        loss(LOGITS, torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("term", [OneAgainstRest(), SquaredDistance(), WithBackground(), Background()])
def test_terms_read_the_student_and_give_a_value_per_sample(term: Term) -> None:
    batch = Batch(torch.zeros(3, 1), LABELS, torch.arange(3), None)
    value = term(Outputs(LOGITS, {"abstain": ABSTAIN}), None, batch)
    assert value.shape == (3,)
    assert term.teacher_roles == ()


def test_noise_is_uniform_in_the_range_of_pixels() -> None:
    batch = Batch(torch.zeros(50, 1, 8, 8), torch.zeros(50).long(), torch.arange(50), None)
    noise = UniformNoise()(batch, Outputs(None), None).inputs
    assert noise.shape == batch.inputs.shape
    assert 0 <= noise.min() < 0.01
    assert 0.99 < noise.max() <= 1
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.05)
