"""Adaptive noise: its power, its independence of scale, its gradients, and the running statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tutelage.methods.ani.layer import AdaptiveNoise, Per, deviation, silenced


def activations(*shape: int, scale: float = 1.0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    channels = torch.arange(1, shape[1] + 1).view(1, -1, *[1] * (len(shape) - 2))
    return scale * channels * (values + 2)


@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 4, 5), 1), ((7, 3), 1), ((4, 5, 3), 2)])
def test_deviation_equals_plain_loops(shape: tuple[int, ...], axis: int) -> None:
    values = activations(*shape).double()
    for per in ("channel", "layer"):
        parts = [values] if per == "layer" else values.unbind(axis)
        expected = []
        for part in parts:
            numbers = part.flatten().tolist()
            mean = sum(numbers) / len(numbers)
            expected.append(math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers)))
        result = deviation(values, axis, per)  # type: ignore[arg-type]
        torch.testing.assert_close(result, torch.tensor(expected if per == "channel" else expected[0]).double())


@pytest.mark.parametrize("per", ["channel", "layer"])
@pytest.mark.parametrize("training", [True, False])
def test_mean_and_power_of_the_noise(per: Per, training: bool) -> None:
    """E h~ = h and Var(h~ - h) = s^2 sigma^2, over 10,000 draws of each element."""
    torch.manual_seed(0)
    values = activations(3, 2, 2, 2)
    layer = AdaptiveNoise(0.5, 2, per=per, source="batch").train(training)
    noise = torch.stack([layer(values) - values for _ in range(10_000)])
    sigma = deviation(values, 1, per)
    expected = 0.5 * (sigma.view(1, 2, 1, 1) if per == "channel" else sigma)
    per_channel = noise.transpose(0, 2).flatten(1).std(1)
    torch.testing.assert_close(per_channel, expected.flatten().expand(2), rtol=0.01, atol=0)
    per_element = noise.var(0) / expected**2
    assert (per_element - 1).abs().max() < 0.08  # 5 sqrt(2 / 10,000)
    assert abs(float(per_element.mean()) - 1) < 0.02
    assert (noise.mean(0) / expected).abs().max() < 0.05
    flat = noise.flatten(1)
    correlations = torch.corrcoef(flat.T) - torch.eye(flat.shape[1])
    assert correlations.abs().max() < 0.06  # independent elements


def test_the_noise_grows_with_the_weights_and_fixed_noise_does_not() -> None:
    """Ten times the weights give ten times the noise, bit for bit up to rounding: the network cannot drown it out."""
    torch.manual_seed(0)
    linear, inputs = nn.Linear(4, 3, bias=False), torch.randn(50, 4)
    layer = AdaptiveNoise(0.5, 3, source="batch")

    def ratio(factor: float) -> tuple[float, Tensor]:
        with torch.no_grad():
            values = factor * linear(inputs)
        torch.manual_seed(1)
        noise = layer(values) - values
        return float(values.var() / noise.var()), noise

    (ratio_before, noise), (ratio_after, scaled) = ratio(1.0), ratio(10.0)
    torch.testing.assert_close(scaled, 10 * noise, rtol=1e-4, atol=1e-5)
    assert ratio_after == pytest.approx(ratio_before, rel=1e-3)
    fixed_before, fixed_after = (float((factor * linear(inputs)).detach().var()) for factor in (1.0, 10.0))
    assert fixed_after == pytest.approx(100 * fixed_before, rel=1e-4)  # with noise of variance 1


def test_no_gradient_flows_through_the_deviation() -> None:
    """The gradient is that of the identity, in double precision by finite differences of h + constant."""
    values = activations(4, 2, 3, 3).double().requires_grad_()
    weights = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    layer = AdaptiveNoise(0.7, 2)
    (gradient,) = torch.autograd.grad((weights * layer(values)).sum(), values)
    assert torch.equal(gradient, weights)


def test_a_constant_channel_a_single_sample_and_scale_0() -> None:
    values = activations(5, 3, 2, 2)
    values[:, 1] = 4.0
    noisy = AdaptiveNoise(1.0, 3)(values)
    torch.testing.assert_close(noisy[:, 1], values[:, 1], rtol=0, atol=1e-5)
    assert (noisy[:, 0] != values[:, 0]).any()
    single = torch.tensor([[1.0, -2.0, 3.0]])
    assert torch.equal(AdaptiveNoise(1.0, 3)(single), single)  # one value has no deviation, and no NaN
    assert AdaptiveNoise(1.0, 3)(activations(1, 3, 2, 2)).isfinite().all()
    assert torch.equal(AdaptiveNoise(0.0, 3)(values), values)


def test_running_deviation() -> None:
    """The n-th batch has weight 1 / n, from the tenth on 0.1; eval mode uses the average and does not change it."""
    layer = AdaptiveNoise(0.5, 2)
    batches = [activations(8, 2, 3, 3, scale=scale) for scale in (1.0, 3.0, 2.0) * 5]
    before_training = layer.eval()(batches[0]) - batches[0]
    assert before_training.abs().max() > 0
    layer.train()
    expected = None
    for batch in batches:
        layer(batch)
        current = deviation(batch, 1)
        expected = current if expected is None else torch.lerp(expected, current, max(0.1, 1 / int(layer.batches)))
        torch.testing.assert_close(layer.sigma, expected)
    layer.eval()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    one = activations(1, 2, 3, 3, scale=50.0)
    noise = []
    for other in (one, 7 * one):
        torch.manual_seed(0)
        noise.append(layer(torch.cat([one, other]))[0])
    assert torch.equal(*noise)  # independent of the other samples
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_noise_is_on_in_both_modes_unless_silenced() -> None:
    network = nn.Sequential(nn.Linear(4, 3), AdaptiveNoise(0.5, 3))
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        network.train(mode)
        assert not torch.equal(network(inputs), network(inputs))
        with silenced(network):
            assert torch.equal(network(inputs), network[0](inputs))
        assert not torch.equal(network(inputs), network(inputs))


def test_the_memory_layout_changes_no_number() -> None:
    layer, values = AdaptiveNoise(0.5, 3, source="batch"), activations(2, 3, 4, 4)
    torch.manual_seed(0)
    expected = layer(values)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(values.to(memory_format=torch.channels_last)), expected)


def test_half_precision() -> None:
    values = activations(64, 2, 8, 8)
    torch.manual_seed(0)
    expected = AdaptiveNoise(0.5, 2)(values)
    torch.manual_seed(0)
    result = AdaptiveNoise(0.5, 2)(values.bfloat16())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0.02, atol=0.05)


def test_a_learnable_scale_has_its_initial_value_and_the_gradient_of_softplus() -> None:
    for scale in (0.05, 0.25, 3.0):
        layer = AdaptiveNoise(scale, 2, learnable=True)
        assert layer.rho is not None
        values = activations(5, 2)
        torch.manual_seed(0)
        noisy = layer(values)
        torch.manual_seed(0)
        torch.testing.assert_close(noisy, AdaptiveNoise(scale, 2)(values))
        noisy.sum().backward()
        expected = float((noisy.detach() - values).sum()) / scale * float(torch.sigmoid(layer.rho.detach()))
        assert float(layer.rho.grad) == pytest.approx(expected, rel=1e-3)  # type: ignore[arg-type]
