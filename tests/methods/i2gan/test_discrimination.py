"""The loss of real and generated images of a classifier."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.methods.i2gan.discrimination import Discrimination, discrimination
from tutelage.models.outputs import Outputs


def random_logits(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_zero_logits() -> None:
    """Z = K: half the sum of both losses is 1.24660 for ten classes."""
    logits = torch.zeros(3, 10, dtype=torch.float64)
    real, generated = discrimination(logits, genuine=True), discrimination(logits, genuine=False)
    assert real.tolist() == pytest.approx([math.log(11) - math.log(10)] * 3, abs=1e-12)
    assert generated.tolist() == pytest.approx([math.log(11)] * 3, abs=1e-12)
    assert 0.5 * (real + generated).mean().item() == pytest.approx(1.24660, abs=5e-6)


def test_against_plain_loops() -> None:
    logits = random_logits(20, 4)
    for genuine in (True, False):
        expected = []
        for row in logits.tolist():
            z = sum(math.exp(value) for value in row)
            probability = z / (z + 1)
            expected.append(-math.log(probability if genuine else 1 - probability))
        assert discrimination(logits, genuine=genuine).tolist() == pytest.approx(expected, rel=1e-9)


def test_equals_cross_entropy_of_one_more_class_with_logit_zero() -> None:
    logits = random_logits(20, 4)
    log_probabilities = F.pad(logits, (0, 1)).log_softmax(1)
    torch.testing.assert_close(discrimination(logits, genuine=True), -log_probabilities[:, :4].logsumexp(1))
    torch.testing.assert_close(discrimination(logits, genuine=False), -log_probabilities[:, 4])


@pytest.mark.parametrize("genuine", [True, False])
def test_gradient_pulls_real_and_pushes_generated_images_by_class_probability(genuine: bool) -> None:
    logits = torch.tensor([[1.0, -0.5, 0.2]], dtype=torch.float64, requires_grad=True)
    discrimination(logits, genuine=genuine).sum().backward()
    z = logits.detach().exp().sum()
    probability = z / (z + 1)
    p = logits.detach().softmax(1)
    torch.testing.assert_close(logits.grad, -p * (1 - probability) if genuine else p * probability)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_are_finite(size: float) -> None:
    logits = torch.tensor([[size, size, 0.3 * size]], requires_grad=True)
    for genuine in (True, False):
        value = discrimination(logits, genuine=genuine)
        largest = max(size, 0.3 * size)
        assert value.item() == pytest.approx(max(-largest if genuine else largest, 0), abs=1)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.isfinite().all()


def test_term_reads_logits_without_labels() -> None:
    logits = random_logits(5, 3)
    for genuine in (True, False):
        value = Discrimination(genuine=genuine)(Outputs(logits), None, None)
        torch.testing.assert_close(value, discrimination(logits, genuine=genuine))


def test_half_precision_becomes_float32() -> None:
    assert discrimination(torch.zeros(2, 3, dtype=torch.bfloat16), genuine=True).dtype == torch.float32
