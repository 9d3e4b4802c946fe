"""The gambler's loss: Kelly's portfolio in closed form, reached by descent, and extreme logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import probability_shift
from tutelage.methods.abstention.gambler import Gambler, SoftBet, check_payoff, gambler, soft_bet
from tutelage.models.outputs import Outputs

ON_THE_CARD = [
    ((0.8, 0.15, 0.05), 2.2, (0.6333, 0, 0, 0.3667)),
    ((0.5, 0.45, 0.05), 2.6, (0.4167, 0.3667, 0, 0.2167)),
    ((0.97, 0.02, 0.01), 2.2, (0.945, 0, 0, 0.055)),
    ((0.4, 0.35, 0.25), 2.2, (0, 0, 0, 1)),
]


def kelly(q: tuple[float, ...], payoff: float) -> list[float]:
    """The growth-optimal portfolio with cash, (p_1 .. p_m, p_a): of the prefixes of q sorted, the first that is enough.

    Support S, Q = its sum: p_a = (1 - Q) / (1 - |S| / o), p_j = q_j - p_a / o in S; all others have q_j <= p_a / o.
    """
    order = sorted(range(len(q)), key=lambda j: -q[j])
    for size in range(len(q) + 1):
        selected = order[:size]
        if size >= payoff:
            break
        reserve = (1 - sum(q[j] for j in selected)) / (1 - size / payoff)
        if all(q[j] <= reserve / payoff + 1e-12 for j in order[size:]):
            return [q[j] - reserve / payoff if j in selected else 0.0 for j in range(len(q))] + [reserve]
    raise AssertionError("no portfolio")


def minimize(q: tuple[float, ...], payoff: float) -> list[float]:
    """The result of gradient descent on the m + 1 outputs."""
    s = torch.zeros(1, len(q) + 1, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([q], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([s], max_iter=300, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = soft_bet(s[:, :-1], s[:, -1:], target, payoff).sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    result: list[float] = s.detach().softmax(1)[0].tolist()
    return result


@pytest.mark.parametrize(("q", "payoff", "expected"), ON_THE_CARD)
def test_descent_reaches_kelly_portfolio(q: tuple[float, ...], payoff: float, expected: tuple[float, ...]) -> None:
    assert kelly(q, payoff) == pytest.approx(expected, abs=1e-4)
    assert minimize(q, payoff) == pytest.approx(kelly(q, payoff), abs=1e-4)


@pytest.mark.parametrize(("payoff", "reserve"), [(0.9, 1.0), (3.5, 0.0)])
def test_invalid_payoff_collapses(payoff: float, reserve: float) -> None:
    """At 1 or less the optimum abstains always; at m or more never."""
    assert minimize((0.6, 0.3, 0.1), payoff)[-1] == pytest.approx(reserve, abs=1e-4)


@pytest.mark.parametrize("payoff", [-1, 0, 0.5, 1, 10, 11, math.inf, math.nan])
def test_invalid_payoffs_are_refused(payoff: float) -> None:
    for make in (lambda: check_payoff(payoff, 10), lambda: Gambler(payoff).build(random_outputs(classes=10), None)):
        with pytest.raises(TutelageError, match=r"the payoff must be between 1, .* use for example 2\.2$") as exc_info:
            make()
        assert len(str(exc_info.value).splitlines()) == 1
    check_payoff(1.01, 10)
    check_payoff(9.99, 10)


def test_suggested_payoff_is_valid() -> None:
    with pytest.raises(TutelageError, match=r"example 1\.5$"):
        check_payoff(2.2, 2)
    check_payoff(1.5, 2)


def random_outputs(samples: int = 5, classes: int = 4, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(samples, classes + 1, generator=generator, dtype=torch.float64)
    return Outputs(outputs[:, :-1], {"abstain": outputs[:, -1:]})


def test_gambler_equals_plain_loops() -> None:
    outputs, labels = random_outputs(), torch.tensor([0, 3, -1, 2, 1])
    values = gambler(outputs["logits"], outputs["abstain"], labels, 2.2).tolist()
    for row, abstain, y, value in zip(
        outputs["logits"].tolist(), outputs["abstain"].tolist(), labels.tolist(), values, strict=True
    ):
        total = sum(math.exp(s) for s in [*row, *abstain])
        expected = 0.0 if y < 0 else -math.log(math.exp(row[y]) / total + math.exp(abstain[0]) / total / 2.2)
        assert value == pytest.approx(expected)


def test_the_abstain_logit_is_inside_the_softmax() -> None:
    """Three equal outputs of which one abstains: p_y = p_a = 1/3, not 1/2."""
    value = gambler(torch.zeros(1, 2), torch.zeros(1, 1), torch.tensor([1]), 1.5)
    assert value.item() == pytest.approx(-math.log(1 / 3 + 1 / 3 / 1.5))


def test_soft_bet_of_one_hot_target_equals_gambler() -> None:
    outputs, labels = random_outputs(), torch.tensor([0, 3, 1, 2, 1])
    hard = gambler(outputs["logits"], outputs["abstain"], labels, 2.2)
    one_hot = torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(soft_bet(outputs["logits"], outputs["abstain"], one_hot, 2.2), hard)
    torch.testing.assert_close(gambler(outputs["logits"], outputs["abstain"], 0.6 * one_hot + 0.1, 2.2), hard)


def test_equals_cross_entropy_without_abstention() -> None:
    outputs, labels = random_outputs(), torch.tensor([0, 3, 1, 2, 1])
    value = gambler(outputs["logits"], torch.full((5, 1), -1e4, dtype=torch.float64), labels, 2.2)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="none"))


def test_readme_form_has_the_same_gradient() -> None:
    """-log(o p_y + p_a) of the authors' README differs by log o."""
    outputs, labels = random_outputs(), torch.tensor([0, 3, 1, 2, 1])
    s = torch.cat([outputs["logits"], outputs["abstain"]], 1).requires_grad_()
    p = s.softmax(1)
    readme_value = -(2.2 * p[torch.arange(5), labels] + p[:, -1]).log()
    gambler_value = gambler(s[:, :-1], s[:, -1:], labels, 2.2)
    torch.testing.assert_close(gambler_value - readme_value, torch.full((5,), math.log(2.2), dtype=torch.float64))
    gradients = [torch.autograd.grad(value.sum(), s, retain_graph=True)[0] for value in (readme_value, gambler_value)]
    torch.testing.assert_close(*gradients)


def test_gradcheck() -> None:
    outputs = random_outputs()
    q = random_outputs(seed=1)["logits"].softmax(1)
    logits, abstain = outputs["logits"].clone().requires_grad_(), outputs["abstain"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, a: soft_bet(s, a, q, 2.2), (logits, abstain))


def test_a_sample_without_a_label_has_no_value_and_no_gradient() -> None:
    logits, abstain = torch.randn(2, 4, requires_grad=True), torch.randn(2, 1, requires_grad=True)
    value = gambler(logits, abstain, torch.tensor([-1, 2]), 2.2)
    value.sum().backward()
    assert value[0].item() == 0
    assert logits.grad is not None
    assert abstain.grad is not None
    assert not logits.grad[0].any()
    assert not abstain.grad[0].any()
    assert logits.grad[1].any()


@pytest.mark.parametrize("magnitude", [-1e4, 1e4])
def test_logits_of_ten_thousand(magnitude: float) -> None:
    """e^-10000 underflows but its logarithm does not: the loss is 10000, or log o."""
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    abstain = torch.tensor([[magnitude]], requires_grad=True)
    value = gambler(logits, abstain, torch.tensor([1]), 2.2)
    value.sum().backward()
    expected = 1e4 if magnitude < 0 else math.log(2) + math.log(2.2)
    assert value.item() == pytest.approx(expected)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert abstain.grad is not None
    assert abstain.grad.isfinite().all()


# --- terms


def test_terms_read_abstention_output(batch_of: Callable[[Tensor], Batch]) -> None:
    student, teacher, labels = random_outputs(), random_outputs(seed=1), torch.tensor([0, 3, -1, 2, 1])
    batch = batch_of(labels)
    hard, soft = Gambler(2.2), SoftBet(2.2)
    assert hard.roles == soft.roles == ("logits", "abstain")
    assert (hard.teacher_roles, soft.teacher_roles) == ((), ("logits",))
    torch.testing.assert_close(hard(student, None, batch), gambler(student["logits"], student["abstain"], labels, 2.2))
    q = probability_shift(teacher["logits"].softmax(1), labels)
    assert (q.argmax(1) == labels)[labels >= 0].all()
    torch.testing.assert_close(soft(student, teacher, batch), soft_bet(student["logits"], student["abstain"], q, 2.2))


def test_missing_inputs_are_errors(batch_of: Callable[[Tensor], Batch]) -> None:
    with pytest.raises(TutelageError, match="batch"):
        Gambler(2.2)(random_outputs(), None, None)
    with pytest.raises(TutelageError, match="teacher"):
        SoftBet(2.2)(random_outputs(), None, batch_of(torch.zeros(5).long()))
    with pytest.raises(TutelageError, match="abstain"):
        Gambler(2.2)(Outputs(random_outputs()["logits"]), None, batch_of(torch.zeros(5).long()))


def test_no_gradient_reaches_teacher_from_soft_bet(batch_of: Callable[[Tensor], Batch]) -> None:
    teacher = random_outputs(seed=1)["logits"].clone().requires_grad_()
    student = random_outputs()["logits"].clone().requires_grad_()
    outputs = Outputs(student, {"abstain": random_outputs()["abstain"]})
    SoftBet(2.2)(outputs, Outputs(teacher), batch_of(torch.zeros(5).long())).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
