"""The losses on gates and states, and the statistics of gates."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.methods.dmnn.gates import Gates
from tutelage.methods.dmnn.terms import CategoryLoss, RateLoss, executed_share
from tutelage.methods.dmnn.usage import gate_usage, mutual_information
from tutelage.models.outputs import Outputs

COSTS = (3, 1, 4)
GATES = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def rate(gates: Tensor, target: float, **options: bool) -> Tensor:
    term = RateLoss(COSTS, target, **{"sampled": True, **options})
    return term(Outputs(None, {"gates": gates, "gate_logits": gates}), None, None)


def test_the_rate_is_the_share_of_the_costs() -> None:
    torch.testing.assert_close(executed_share(GATES, torch.tensor(COSTS)), torch.tensor([7 / 8, 1 / 8]).double())
    assert float(rate(GATES, 0.7)) == pytest.approx((0.5 - 0.7) ** 2, rel=1e-6)
    assert float(rate(GATES, 0.5)) == 0
    assert float(rate(torch.ones(4, 3), 1.0)) == 0
    assert float(rate(torch.zeros(4, 3), 0.7)) == pytest.approx(0.49)


def test_the_mean_is_over_the_batch_before_the_square() -> None:
    uneven = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert float(rate(uneven, 0.5)) == 0


def test_executed_gates_are_those_without_noise() -> None:
    logits = torch.tensor([[0.1, -3.0, 2.0]], requires_grad=True)
    value = rate(logits, 0.2, sampled=False)
    assert float(value.detach()) == pytest.approx((7 / 8 - 0.2) ** 2, rel=1e-6)
    value.backward()
    assert logits.grad is not None
    for gradient, logit, cost in zip(logits.grad[0].tolist(), [0.1, -3.0, 2.0], COSTS, strict=True):
        soft = 1 / (1 + math.exp(-logit))
        assert gradient == pytest.approx(2 * (7 / 8 - 0.2) * cost / 8 * soft * (1 - soft), rel=1e-5)


def test_a_constant_controller_reaches_the_target() -> None:
    """The minimum over one logit for all samples is where the gates are open with probability t."""
    torch.manual_seed(0)
    logit, gates = torch.zeros(1, requires_grad=True), Gates().train()
    optimizer = torch.optim.SGD([logit], lr=2.0)
    trace = []
    for _ in range(600):
        optimizer.zero_grad()
        rate(gates(logit.expand(256, 3)), 0.7).backward()
        optimizer.step()
        trace.append(float(logit.detach()))
    assert 1 / (1 + math.exp(-sum(trace[-300:]) / 300)) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9])
def test_executed_share_of_a_controller_reaches_the_target_against_a_pull(target: float) -> None:
    """Gates of a linear function of the input, with a second loss that would open all of them."""
    torch.manual_seed(0)
    inputs, controller = torch.randn(256, 8), torch.nn.Linear(8, 3)
    optimizer = torch.optim.SGD(controller.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        logits = controller(inputs)
        (10 * rate(logits, target, sampled=False) - 0.02 * torch.sigmoid(logits).mean()).backward()
        optimizer.step()
    gates = (controller(inputs) > 0).float()
    assert float(executed_share(gates, torch.tensor(COSTS)).mean()) == pytest.approx(target, abs=0.03)
    assert float((gates.mean(0) * (1 - gates.mean(0))).max()) > 0.02


def test_gradient_of_the_rate() -> None:
    assert torch.autograd.gradcheck(lambda gates: rate(gates, 0.3), GATES.clone().requires_grad_())


def built(groups: list[int]) -> CategoryLoss:
    torch.manual_seed(1)
    term = CategoryLoss(2, groups)
    term.build(Outputs(None, {"states": torch.zeros(1, 6)}), None)
    return term.double()


STATES = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_category_loss_equals_plain_loops(batch_of: Callable[[Tensor], Batch]) -> None:
    term, labels = built([0, 1, 1, 0]), [0, 2, -1, 3]
    value = term(Outputs(None, {"states": STATES}), None, batch_of(torch.tensor(labels))).detach()
    for sample, label in enumerate(labels):
        expected = 0.0
        for block, layer in enumerate(term.classifiers):
            state = STATES[sample, 3 * block : 3 * block + 3].tolist()
            logits = [
                sum(w * x for w, x in zip(row, state, strict=True)) + bias
                for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)  # type: ignore[union-attr, operator]
            ]
            total = math.log(sum(map(math.exp, logits)))
            expected += 0.0 if label < 0 else (total - logits[[0, 1, 1, 0][label]]) / 2
        assert float(value[sample]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_soft_labels_become_distributions_over_categories(batch_of: Callable[[Tensor], Batch]) -> None:
    term = built([0, 1, 1, 0])
    hard = torch.tensor([0, 2, 1, 3])
    soft = torch.nn.functional.one_hot(hard, 4).double()
    outputs = Outputs(None, {"states": STATES})
    torch.testing.assert_close(term(outputs, None, batch_of(soft)), term(outputs, None, batch_of(hard)))
    mixed = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(term.category(mixed), torch.tensor([[0.5, 0.5]], dtype=torch.float64))


def test_gradient_of_the_category_loss(batch_of: Callable[[Tensor], Batch]) -> None:
    term, batch = built([0, 1, 2]), batch_of(torch.tensor([0, 1, 2, -1]))
    assert torch.autograd.gradcheck(
        lambda states: term(Outputs(None, {"states": states}), None, batch), STATES.clone().requires_grad_()
    )


# --- statistics


def test_mutual_information_by_hand() -> None:
    assert mutual_information([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0)
    assert mutual_information(["a", "b", "a", "b"], [0, 1, 0, 1]) == pytest.approx(math.log(2))
    assert mutual_information([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx(
        2 / 4 * math.log(2 / 4 / (3 / 4 * 2 / 4))
        + 1 / 4 * math.log(1 / 4 / (3 / 4 * 2 / 4))
        + 1 / 4 * math.log(1 / 4 / (1 / 4 * 2 / 4))
    )
    assert mutual_information([], []) == 0


def test_usage_of_gates_that_follow_the_class_and_of_constant_ones() -> None:
    labels = torch.arange(200) % 2
    usage = gate_usage(torch.stack([labels, torch.ones(200)], 1), labels, (1, 3))
    assert usage["executed_share"] == pytest.approx(0.875)
    assert usage["open_share"] == [0.5, 1.0]
    assert usage["gate_variance"] == pytest.approx(0.125)
    assert usage["patterns"] == 2
    assert usage["class_information"] == pytest.approx(math.log(2))
    assert 0 <= usage["class_information_by_chance"] < 0.01
    constant = gate_usage(torch.ones(200, 2), labels, (1, 3))
    assert (constant["gate_variance"], constant["class_information"], constant["patterns"]) == (0, 0, 1)


def test_usage_by_chance_is_the_bias_of_the_estimate() -> None:
    gates = torch.randint(2, (60, 5), generator=torch.Generator().manual_seed(0)).float()
    usage = gate_usage(gates, torch.arange(60) % 4, (1,) * 5)
    assert usage["class_information"] > 0.3
    assert usage["class_information"] == pytest.approx(usage["class_information_by_chance"], abs=0.15)


def test_unlabelled_samples_count_for_the_usage_only() -> None:
    gates = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    usage = gate_usage(gates, torch.tensor([0, 1, -1, -1]), (1,))
    assert usage["executed_share"] == pytest.approx(0.75)
    assert usage["class_information"] == pytest.approx(math.log(2))
