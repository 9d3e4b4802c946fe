"""The label loss with hard, soft and missing labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import cross_entropy
from tutelage.models.outputs import Outputs
from tutelage.terms import CrossEntropy

INF = float("inf")


def reference_losses(logits: Tensor, targets: list[list[float]]) -> list[float]:
    values = []
    for z, y in zip(logits.tolist(), targets, strict=True):
        total = math.log(sum(math.exp(x) for x in z))
        values.append(-sum(weight * (x - total) for x, weight in zip(z, y, strict=True)))
    return values


def random_logits(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_equals_plain_loops(kind: str) -> None:
    logits, labels = random_logits(5, 4), [3, 0, 1, 1, 2]
    targets = F.one_hot(torch.tensor(labels), 4).double() if kind == "hard" else random_logits(5, 4).softmax(1)
    labels_or_targets = torch.tensor(labels) if kind == "hard" else targets
    assert cross_entropy(logits, labels_or_targets).tolist() == pytest.approx(
        reference_losses(logits, targets.tolist()), rel=1e-12
    )


def test_gradient_is_p_minus_y() -> None:
    logits, soft = random_logits(5, 4).requires_grad_(), random_logits(5, 4).flip(0).softmax(1)
    cross_entropy(logits, soft).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - soft)


def test_minimum_is_entropy_of_label() -> None:
    logits = random_logits(5, 4).requires_grad_()
    soft = logits.detach().softmax(1)
    value = cross_entropy(logits, soft)
    value.sum().backward()
    torch.testing.assert_close(value, -(soft * soft.log()).sum(1))
    torch.testing.assert_close(logits.grad, torch.zeros(5, 4).double())


def test_value_and_gradient_are_zero_without_label() -> None:
    logits = random_logits(3, 4).requires_grad_()
    value = cross_entropy(logits, torch.tensor([1, -1, 2]))
    value.sum().backward()
    assert value[1] == 0
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0, 0, 0, 0]
    assert (value[[0, 2]] > 0).all()
    assert (logits.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("label", [4, -2, -101])
def test_only_minus_one_means_no_label(label: int, refused: Callable[..., Any]) -> None:
    with refused(f"label {label} does not exist", "0 to 3", "-1 stands for no label"):
        cross_entropy(random_logits(1, 4), torch.tensor([label]))


@pytest.mark.parametrize(
    ("logits", "value"),
    [
        ([1e4, -1e4, 0], 2e4),
        ([-1e4, 1e4, 0], 0),
        ([0, 0, -INF], math.log(2)),  # the network excludes a class other than the label
    ],
)
def test_one_hot_labels_equal_hard_labels_for_extreme_logits(logits: list[float], value: float) -> None:
    for target in (torch.tensor([1]), torch.tensor([[0.0, 1, 0]])):
        z = torch.tensor([logits], requires_grad=True)
        loss = cross_entropy(z, target)
        loss.sum().backward()
        assert loss.tolist() == pytest.approx([value])
        torch.testing.assert_close(z.grad, z.detach().softmax(1) - torch.tensor([[0.0, 1, 0]]))


def test_loss_is_infinite_for_label_with_probability_zero() -> None:
    assert cross_entropy(torch.tensor([[0.0, -INF]]), torch.tensor([[0.5, 0.5]])).tolist() == [INF]


def test_gradcheck() -> None:
    soft = random_logits(3, 4).softmax(1)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, soft), random_logits(3, 4).requires_grad_())
    hard = torch.tensor([1, -1, 3])
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, hard), random_logits(3, 4).requires_grad_())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(half: torch.dtype) -> None:
    logits = random_logits(5, 4).to(half)
    for targets in (torch.tensor([3, 0, 1, 1, 2]), random_logits(5, 4).softmax(1).float()):
        value = cross_entropy(logits, targets)
        assert value.dtype == torch.float32
        assert torch.equal(value, cross_entropy(logits.float(), targets))


def test_term_reads_labels_of_batch_and_no_teacher(batch_of: Callable[[Tensor], Batch]) -> None:
    logits, labels = random_logits(3, 4), torch.tensor([1, -1, 3])
    term = CrossEntropy()
    assert (term.roles, term.teacher_roles) == (("logits",), ())
    assert torch.equal(term(Outputs(logits), None, batch_of(labels)), cross_entropy(logits, labels))
    with pytest.raises(TutelageError, match="CrossEntropy needs the batch"):
        term(Outputs(logits), None, None)
