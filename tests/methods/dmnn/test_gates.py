"""Gates: their distribution and gradient, open gates, and batch normalisation over the samples that pass a gate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tutelage.methods.dmnn.gates import Gates, MaskedBatchNorm2d, straight_through
from tutelage.models.modes import eval_mode


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_gates_are_binary_and_deterministic_in_eval_mode() -> None:
    gates, logits = Gates().eval(), torch.tensor([[-2.0, -1e-6, 0.0], [1e-6, 0.5, 9.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.equal(gates(logits), expected)
    gates.open.fill_(1)
    assert torch.equal(gates(logits), expected)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_gates_are_open_with_the_probability_of_the_sigmoid(logit: float) -> None:
    torch.manual_seed(0)
    values = Gates().train()(torch.full((20000, 1), logit))
    assert set(values.unique().tolist()) == {0.0, 1.0}
    expected = 1 / (1 + math.exp(-logit))
    assert float(values.mean()) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20000))


def test_open_gates_are_1_without_a_gradient() -> None:
    gates, logits = Gates().train(), normal(5, 3).requires_grad_()
    gates.open.fill_(1)
    values = gates(logits)
    assert torch.equal(values, torch.ones(5, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert not gradient.any()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_straight_through_gradient_is_that_of_the_sigmoid(temperature: float) -> None:
    logits, weight = normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    values = straight_through(logits, temperature)
    torch.testing.assert_close(values, (logits > 0).double())
    (values * weight).sum().backward()
    assert logits.grad is not None
    for gradient, logit, factor in zip(
        logits.grad.flatten().tolist(), logits.flatten().tolist(), weight.flatten().tolist(), strict=True
    ):
        soft = 1 / (1 + math.exp(-logit / temperature))
        assert gradient == pytest.approx(factor * soft * (1 - soft) / temperature, rel=1e-9)


def test_gates_of_half_precision_logits_are_float32() -> None:
    assert Gates()(torch.zeros(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


# --- batch normalisation


@pytest.fixture
def norm() -> MaskedBatchNorm2d:
    layer = MaskedBatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    return layer


def test_statistics_are_those_of_the_samples_of_weight_1(norm: MaskedBatchNorm2d) -> None:
    x, weight = normal(5, 3, 4, 4) * 3 + 1, torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    plain = nn.BatchNorm2d(3).double()
    plain.load_state_dict(norm.state_dict())
    out = norm(x, weight)
    torch.testing.assert_close(out[weight == 1], plain(x[weight == 1]))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value)
    other = norm(torch.cat([x[:1], 100 * x[1:2], x[2:]]), weight)
    torch.testing.assert_close(other[weight == 1], out[weight == 1])


@pytest.mark.parametrize("weight", [None, torch.ones(4)])
def test_without_weights_it_is_ordinary_batch_normalisation(norm: MaskedBatchNorm2d, weight: Tensor | None) -> None:
    plain = nn.BatchNorm2d(3).double()
    plain.load_state_dict(norm.state_dict())
    x = normal(4, 3, 2, 2)
    torch.testing.assert_close(norm(x, weight), plain(x))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    with eval_mode(norm), eval_mode(plain):
        torch.testing.assert_close(norm(x, torch.zeros(4)), plain(x))


def test_without_any_sample_the_running_statistics_are_used_and_remain(norm: MaskedBatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean += 2
    norm.running_var *= 9
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = normal(4, 3, 2, 2).requires_grad_()
    out = norm(x, torch.zeros(4))
    expected = (x - 2) / math.sqrt(9 + norm.eps) * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(norm.state_dict()[name], before[name])


def test_gradient_of_masked_normalisation(norm: MaskedBatchNorm2d) -> None:
    norm.track_running_stats = False
    weight = torch.tensor([1.0, 0.0, 1.0])
    assert torch.autograd.gradcheck(lambda x: norm(x, weight), normal(3, 3, 2, 2).requires_grad_())
    assert norm.num_batches_tracked == 0


def test_half_precision_is_normalised_in_float32() -> None:
    layer, x = MaskedBatchNorm2d(2), (1000 + normal(8, 2, 4, 4)).float()
    out = layer(x.bfloat16(), torch.ones(8))
    assert out.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(2)(x.bfloat16().float())
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
