"""The squared distance of probabilities: values, gradients, and what it refuses to hide."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.losses import softmax_mse
from tutelage.models.outputs import Outputs
from tutelage.terms import SoftmaxMSE


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(ours: list[float], theirs: list[float]) -> float:
    sums = [sum(math.exp(z) for z in side) for side in (ours, theirs)]
    gaps = [math.exp(z) / sums[0] - math.exp(v) / sums[1] for z, v in zip(ours, theirs, strict=True)]
    return sum(gap * gap for gap in gaps) / len(gaps)


def test_value_on_two_classes() -> None:
    """Probabilities (1/4, 3/4) and (1/2, 1/2)."""
    value = softmax_mse(torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2))
    assert value.tolist() == pytest.approx([1 / 16])


def test_equals_plain_loops_per_sample() -> None:
    ours, theirs = logits(5, 7), logits(5, 7, seed=1)
    expected = [by_hand(z, v) for z, v in zip(ours.tolist(), theirs.tolist(), strict=True)]
    assert softmax_mse(ours, theirs).tolist() == pytest.approx(expected, rel=1e-12)


def test_it_is_symmetric_blind_to_a_shift_and_at_most_two_over_the_classes() -> None:
    ours, theirs = logits(5, 4), logits(5, 4, seed=1)
    value = softmax_mse(ours, theirs)
    torch.testing.assert_close(softmax_mse(theirs, ours), value)
    torch.testing.assert_close(softmax_mse(ours + 9, theirs - 5), value)
    assert softmax_mse(ours, ours).tolist() == [0] * 5
    sure = 1e4 * torch.eye(4)
    assert softmax_mse(sure[:1], sure[1:2]).tolist() == [pytest.approx(2 / 4)]


def test_the_gradient_reaches_the_student_alone() -> None:
    ours, theirs = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    softmax_mse(ours, theirs).sum().backward()
    assert ours.grad is not None
    assert ours.grad.abs().max() > 1e-3
    assert theirs.grad is None
    assert torch.autograd.gradcheck(lambda z: softmax_mse(z, theirs), ours)


def test_extreme_logits_and_half_precision() -> None:
    ours = torch.tensor([[1e30, -1e30], [float("-inf"), 0.0]], requires_grad=True)
    value = softmax_mse(ours[:1], torch.zeros(1, 2))
    assert value.tolist() == [0.25]
    assert softmax_mse(logits(2, 3).half(), logits(2, 3).half()).dtype == torch.float32
    assert softmax_mse(torch.tensor([[float("nan"), 0.0]]), torch.zeros(1, 2)).isnan().all()


def test_the_term_averages_teachers_as_probabilities() -> None:
    term = SoftmaxMSE()
    one, two = logits(3, 4, seed=1), logits(3, 4, seed=2)
    mean = (one.softmax(1) + two.softmax(1)) / 2
    both = Outputs.ensemble((Outputs(one), Outputs(two)))
    torch.testing.assert_close(term(Outputs(logits(3, 4)), both, None), softmax_mse(logits(3, 4), mean.log()))
    assert (term.roles, term.teacher_roles) == (("logits",), ("logits",))
    with pytest.raises(ValueError, match="teacher"):
        term(Outputs(one), None, None)
