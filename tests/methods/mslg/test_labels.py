"""Reverse KL divergence and entropy: closed forms, plain loops in Python, and learned labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.methods.mslg.labels import LearnedLabels, reverse_kl
from tutelage.models.outputs import Outputs
from tutelage.terms.entropy import Entropy, entropy

INF = float("inf")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Logits and label scores, (6, 5) float64."""
    torch.manual_seed(0)
    logits, scores = (3 * torch.randn(2, 6, 5, dtype=torch.float64)).unbind()
    return logits, scores


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [power / sum(powers) for power in powers]


def test_equals_plain_loops(pair: tuple[Tensor, Tensor]) -> None:
    logits, scores = pair
    rows = [(softmax(z), softmax(s)) for z, s in zip(logits.tolist(), scores.tolist(), strict=True)]
    kl = [sum(a * math.log(a / b) for a, b in zip(p, y, strict=True)) / 5 for p, y in rows]
    entropies = [-sum(a * math.log(a) for a in p) / 5 for p, _ in rows]
    assert reverse_kl(logits, scores.log_softmax(1)).tolist() == pytest.approx(kl, rel=1e-12)
    assert entropy(logits).tolist() == pytest.approx(entropies, rel=1e-12)


@pytest.mark.filterwarnings("ignore:reduction")  # torch recommends a mean over the batch alone
def test_equals_torch_kl_div_with_prediction_as_target(pair: tuple[Tensor, Tensor]) -> None:
    logits, scores = pair
    expected = F.kl_div(scores.log_softmax(1), logits.softmax(1))  # "mean": over both
    torch.testing.assert_close(reverse_kl(logits, scores.log_softmax(1)).mean(), expected)
    torch_default = F.kl_div(logits.log_softmax(1), scores.softmax(1))
    assert abs(float(torch_default - expected)) > 0.1


def test_label_probability_of_score_ten() -> None:
    scores = 10 * F.one_hot(torch.tensor([3]), 10).double()
    assert scores.softmax(1)[0, 3].item() == pytest.approx(0.99959, abs=5e-6)
    value = 10 * reverse_kl(torch.zeros(1, 10).double(), scores.log_softmax(1))
    assert value.item() == pytest.approx(9 - math.log(10) + math.log1p(9 * math.exp(-10)), rel=1e-12)
    assert value.item() == pytest.approx(6.698, abs=5e-4)


def test_sum_with_entropy_is_reverse_cross_entropy(pair: tuple[Tensor, Tensor]) -> None:
    for logits, scores in (pair, tuple(value.float() for value in pair)):
        total = reverse_kl(logits, scores.log_softmax(1)) + entropy(logits)
        torch.testing.assert_close(total, -(logits.softmax(1) * scores.log_softmax(1)).mean(1), atol=1e-6, rtol=0)


def test_gradients_of_both_arguments(pair: tuple[Tensor, Tensor]) -> None:
    logits, scores = (value.requires_grad_() for value in pair)

    def loss(z: Tensor, s: Tensor) -> Tensor:
        return reverse_kl(z, s.log_softmax(1))

    assert torch.autograd.gradcheck(loss, (logits, scores))
    assert torch.autograd.gradgradcheck(loss, (logits, scores))
    assert torch.autograd.gradcheck(entropy, logits)


def test_invariances_of_gradient(pair: tuple[Tensor, Tensor]) -> None:
    """A constant added to logits or scores does not change it; and it is 0 if the label equals the prediction."""
    logits, scores = pair
    value = reverse_kl(logits, scores.log_softmax(1))
    torch.testing.assert_close(reverse_kl(logits + 7, (scores - 3).log_softmax(1)), value)
    equal = logits.clone().requires_grad_()
    reverse_kl(equal, logits.log_softmax(1)).sum().backward()
    assert equal.grad is not None
    assert float(equal.grad.abs().max()) < 1e-12


def test_extreme_logits() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, -INF, 0.0]], requires_grad=True)
    label = torch.tensor([[-200.0, 0, 0], [0, 0, 0]]).log_softmax(1)  # e^-200 underflows in float32
    value, entropies = reverse_kl(logits, label), entropy(logits)
    assert value.tolist() == pytest.approx([(200 + math.log(2)) / 3, math.log(3 / 2) / 3])
    assert entropies.tolist() == pytest.approx([0, math.log(2) / 3])
    (value + entropies)[0].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad[0]).all()


def test_half_precision_becomes_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert entropy(torch.zeros(2, 3, dtype=dtype)).dtype == torch.float32
        assert reverse_kl(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3).log_softmax(1)).dtype == torch.float32


# --- terms


def test_entropy_term(pair: tuple[Tensor, Tensor], batch_of: Callable[[Tensor], Batch]) -> None:
    term = Entropy()
    assert term.teacher_roles == ()
    assert torch.equal(term(Outputs(pair[0]), None, None), entropy(pair[0]))


def test_labels_belong_to_samples(tiny_data: Data) -> None:
    split = tiny_data.train.subset(torch.tensor([40, 3, 17, 8]))
    scores = torch.arange(16.0).view(4, 4).square()
    term = LearnedLabels(split, scores)
    index = torch.tensor([17, 40])
    assert torch.equal(term.scores(index), scores[[2, 0]])
    batch = Batch(torch.zeros(2, 1, 8, 8), torch.tensor([-1, 0]), index, None)
    logits = torch.randn(2, 4)
    value = term(Outputs(logits), None, batch)
    assert term.teacher_roles == ()
    assert torch.equal(value, reverse_kl(logits, scores[[2, 0]].log_softmax(1)))
    assert torch.equal(value, term(Outputs(logits), None, replace(batch, targets=torch.tensor([2, 2]))))
    change = torch.tensor([[1.0, -1, 0, 0], [0, 0, 2, -2]])
    term.add(index, change)
    scores[[2, 0]] += change
    assert torch.equal(term.scores(split.index), scores)
    with pytest.raises(TutelageError, match="needs the batch"):
        term(Outputs(logits), None, None)


def test_scores_are_copies_and_state_is_restored(tiny_data: Data) -> None:
    scores = torch.randn(48, 4)
    term = LearnedLabels(tiny_data.train, scores)
    term.scores(torch.arange(3)).zero_()
    scores_before, state = scores.clone(), {name: value.clone() for name, value in term.state_dict().items()}
    assert torch.equal(term.scores(torch.arange(48)), scores)
    term.add(torch.arange(48), torch.ones(48, 4))
    assert torch.equal(scores, scores_before)
    assert list(term.parameters()) == []
    term.load_state_dict(state)
    assert torch.equal(term.scores(torch.arange(48)), scores)
