"""Rounding to few bits: values, codes, gradients, groups of channels and their scales, ranges of inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.quantised import (
    KINDS,
    SMALLEST_GAIN,
    Quantised,
    channel_groups,
    code_range,
    fake_quantise,
    group_scales,
    input_range,
)


def weights(channels: int = 64, inputs: int = 16, decades: float = 2.0, seed: int = 0) -> Tensor:
    """(O, I, 3, 3) normal weights whose channels' sizes spread over this many decades, in random order."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (decades * torch.linspace(-1, 0, channels)[torch.randperm(channels, generator=generator)])
    return torch.randn(channels, inputs, 3, 3, generator=generator) * sizes.view(-1, 1, 1, 1)


def quantised(layer: nn.Module, bits: int, groups: int, **inputs: Any) -> Quantised:
    layer.__class__ = KINDS[type(layer)]
    assert isinstance(layer, Quantised)
    layer.start_quantisation(bits, groups, **inputs)
    return layer


def relative_error(weight: Tensor, group: Tensor, bits: int, candidates: int) -> float:
    """The mean over channels of the squared error by the squared weights."""
    scale = group_scales(weight, group, bits, candidates)[group].view(-1, 1, 1, 1)
    error = (weight - fake_quantise(weight, scale, *code_range(bits))).square().flatten(1).sum(1)
    return float((error / weight.square().flatten(1).sum(1)).mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_and_codes(bits: int) -> None:
    low, high = code_range(bits)
    scale = torch.tensor(0.37)
    x = torch.linspace(-(2**bits), 2**bits, 4999)
    y = fake_quantise(x, scale, low, high)
    assert torch.equal(fake_quantise(y, scale, low, high), y)
    assert float(fake_quantise(torch.zeros(()), scale, low, high)) == 0
    assert len(y.unique()) == 2**bits
    inside = (x / scale >= low) & (x / scale <= high)
    assert float((x - y)[inside].abs().max()) <= 0.37 / 2 * (1 + 1e-6)
    expected = [min(max(round(value / 0.37), low), high) * 0.37 for value in x.tolist()]
    torch.testing.assert_close(y, torch.tensor(expected))


def test_gradients_are_those_of_lsq() -> None:
    """A float64 reference in plain loops; the code of 0 shifts the clip."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    upstream = torch.linspace(1, 2, 41, dtype=torch.float64)
    (fake_quantise(x, s, 0, 7, 3.0) * upstream).sum().backward()
    gradient_x, gradient_s = [], 0.0
    for value, factor in zip(x.tolist(), upstream.tolist(), strict=True):
        position = value / 0.3 + 3
        inside = 0 <= position <= 7
        gradient_x.append(factor if inside else 0.0)
        change = round(position) - position if inside else (0 if position < 0 else 7) - 3
        gradient_s += factor * change
    assert x.grad is not None
    assert s.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor(gradient_x, dtype=torch.float64))
    assert float(s.grad) == pytest.approx(gradient_s, rel=1e-9)


@pytest.mark.parametrize(("bits", "groups"), [(2, 1), (3, 4), (4, 8), (4, 12), (8, 100)])
def test_values_equal_torch_with_repeated_scales(bits: int, groups: int) -> None:
    weight = weights(12, 4)
    layer = nn.Conv2d(4, 12, 3)
    layer.weight.data.copy_(weight)
    result = quantised(layer, bits, groups)
    low, high = code_range(bits)
    group = channel_groups(weight, groups)
    scales = group_scales(weight, group, bits)
    assert len(scales) == min(groups, 12)
    expected = torch.fake_quantize_per_channel_affine(
        weight, scales[group], torch.zeros(12, dtype=torch.int32), 0, low, high
    )
    assert torch.equal(result.quantised_weight(), expected)
    if groups == 1:
        per_tensor = torch.fake_quantize_per_tensor_affine(weight, float(scales), 0, low, high)
        assert torch.equal(result.quantised_weight(), per_tensor)
    assert int(result.codes().min()) >= low
    assert int(result.codes().max()) <= high
    assert torch.equal(result.codes() * scales[group].view(-1, 1, 1, 1), expected)


def test_gradients_of_scales_equal_torch() -> None:
    """Of the weights in the clip; torch passes gradients up to half a step outside of it."""
    scale = torch.tensor([0.2, 0.4], requires_grad=True)
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).clamp(-0.38, 0.19).requires_grad_()
    (fake_quantise(x, scale[:, None], -2, 1) ** 2).sum().backward()
    torch_scale, other = scale.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    zeros = torch.zeros(2)
    result = torch._fake_quantize_learnable_per_channel_affine(other, torch_scale, zeros, 0, -2, 1, 1.0)
    (result**2).sum().backward()
    torch.testing.assert_close(scale.grad, torch_scale.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, other.grad)


def test_groups_are_sorted_and_equal() -> None:
    weight = weights(20)
    group = channel_groups(weight, 6)
    sizes = weight.abs().flatten(1).amax(1)
    assert group.bincount().tolist() == [4, 3, 3, 4, 3, 3]
    for number in range(5):
        assert sizes[group == number].max() <= sizes[group == number + 1].min()
    assert torch.equal(channel_groups(weight, 20), torch.arange(20))
    assert torch.equal(channel_groups(weight, 99), torch.arange(20))
    assert torch.equal(channel_groups(weight, 1), torch.zeros(20, dtype=torch.int64))


def test_scale_has_the_smallest_error_of_all_candidates() -> None:
    weight, bits = weights(6, 2).double(), 3
    group = channel_groups(weight, 2)
    for number, scale in enumerate(group_scales(weight, group, bits)):
        members = weight[group == number]
        top = float(members.abs().max()) / 3
        candidates = [top * (1 - 0.8 * index / 99) for index in range(100)]
        errors = [
            sum((w - c * min(max(round(w / c), -4), 3)) ** 2 for w in members.flatten().tolist()) for c in candidates
        ]
        assert float(scale) == pytest.approx(candidates[errors.index(min(errors))], rel=1e-5)


@pytest.mark.parametrize(
    ("bits", "layer", "contiguous", "by_size", "channel"),
    [(4, 0.672, (0.591, 0.552), (0.067, 0.031), 0.017), (3, 0.841, (0.751, 0.718), (0.338, 0.171), 0.091)],
)
def test_sorted_groups_help_small_channels_and_contiguous_ones_do_not(
    bits: int, layer: float, contiguous: tuple[float, float], by_size: tuple[float, float], channel: float
) -> None:
    """64 channels over two decades with maximum scales; the expected numbers are of other random weights."""
    trials = [weights(seed=seed) for seed in range(5)]

    def error(group: Any) -> float:
        return sum(relative_error(weight, group(weight), bits, 1) for weight in trials) / len(trials)

    assert error(lambda w: channel_groups(w, 1)) == pytest.approx(layer, abs=0.05)
    assert error(lambda w: channel_groups(w, 64)) == pytest.approx(channel, abs=0.02)
    for groups, expected_contiguous, expected_sorted in zip((4, 8), contiguous, by_size, strict=True):
        unsorted = error(lambda w, groups=groups: torch.arange(64) * groups // 64)
        in_order = error(lambda w, groups=groups: channel_groups(w, groups))
        assert unsorted == pytest.approx(expected_contiguous, abs=0.12)
        assert in_order == pytest.approx(expected_sorted, abs=0.05)
        assert in_order < unsorted / 2


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_error_falls_with_nested_groups(bits: int) -> None:
    for seed in range(5):
        weight = weights(seed=seed)
        errors = []
        for groups in (1, 2, 4, 8, 16, 32, 64):
            group = channel_groups(weight, groups)
            scale = group_scales(weight, group, bits)[group].view(-1, 1, 1, 1)
            errors.append(float((weight - fake_quantise(weight, scale, *code_range(bits))).square().sum()))
        assert errors == sorted(errors, reverse=True)


def test_range_of_inputs() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    unsigned = input_range(values.relu(), 4)
    assert float(unsigned.zero) == 0
    signed = input_range(values, 4)
    assert 1 <= float(signed.zero) <= 14
    for inputs, (scale, zero) in ((values.relu(), unsigned), (values, signed)):
        width = float(inputs.max().clamp(min=0) - inputs.min().clamp(max=0))
        errors = {
            index: float(
                (inputs - fake_quantise(inputs, torch.tensor(width / 15 * share), 0, 15, zero)).square().mean()
            )
            for index, share in enumerate(torch.linspace(1, 0.2, 100).tolist())
        }
        best = min(errors, key=lambda index: errors[index])
        assert float(scale) == pytest.approx(width / 15 * (1 - 0.8 * best / 99), rel=1e-4)
        assert errors[best] < errors[0]
    assert float(fake_quantise(torch.zeros(()), signed.scale, 0, 15, signed.zero)) == 0
    constant = input_range(torch.zeros(3), 4)
    assert float(constant.scale) > 0
    assert float(input_range(torch.full((3,), 2.0), 8).scale) == pytest.approx(2 / 255)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 8, 3), nn.Linear(27, 8), nn.Conv2d(4, 8, 3, groups=2)])
def test_rounding_the_weights_changes_no_output(layer: nn.Module) -> None:
    torch.manual_seed(0)
    result = quantised(layer, 3, 4)
    with torch.no_grad():
        result.weight_gain.mul_(torch.tensor([0.9, 1.1, 1.3, 0.7]))
    inputs = torch.randn(5, layer.in_channels, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(5, 27)
    before, weight, codes = result.eval()(inputs), result.quantised_weight(), result.codes()
    assert not torch.equal(result.weight, weight)
    result.round_weights()
    assert torch.equal(result.weight, weight)
    assert torch.equal(result(inputs), before)
    assert torch.equal(result.codes(), codes)
    assert torch.equal(result.weight_gain, torch.ones(4))
    result.round_weights()
    assert torch.equal(result.weight, weight)


def test_gradients_of_gains_and_weights() -> None:
    """s dL/ds / sqrt(N high) in training, with the values of evaluation."""
    torch.manual_seed(0)
    layer = quantised(nn.Linear(30, 8), 3, 2).double()
    direction = torch.randn(8, 30, dtype=torch.float64)
    scale = layer.weight_scale.clone().requires_grad_()
    (fake_quantise(layer.weight.detach(), scale[layer.weight_group][:, None], -4, 3) * direction).sum().backward()
    assert torch.equal(layer.train().quantised_weight(), layer.eval().quantised_weight())
    (layer.train().quantised_weight() * direction).sum().backward()
    assert scale.grad is not None
    torch.testing.assert_close(layer.weight_gain.grad, layer.weight_scale * scale.grad / math.sqrt(30 * 8 / 2 * 3))
    inside = (layer.weight / layer.scales()[layer.weight_group][:, None]).abs() < 3
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[inside], direction[inside])


def test_a_gain_below_zero_leaves_a_positive_scale() -> None:
    layer = quantised(nn.Linear(4, 4), 4, 2)
    with torch.no_grad():
        layer.weight_gain.fill_(-1)
    torch.testing.assert_close(layer.scales(), SMALLEST_GAIN * layer.weight_scale)
    assert layer(torch.ones(1, 4)).isfinite().all()


def test_weights_of_zero_and_tiny_weights_are_finite() -> None:
    for value in (0.0, 1e-30):
        layer = nn.Linear(3, 3)
        nn.init.constant_(layer.weight, value)
        result = quantised(layer, 2, 1, input_bits=4, inputs=torch.zeros(2, 3)).train()
        output = result(torch.zeros(2, 3))
        output.sum().backward()
        assert output.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in result.parameters())
        assert result.quantised_weight().count_nonzero() == 0


def test_inputs_are_rounded_with_their_own_scale() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 5).relu()
    layer = nn.Linear(5, 3)
    result = quantised(layer, 8, 1, input_bits=3, inputs=inputs)
    rounded = result.quantised_input(inputs)
    assert len(rounded.unique()) == 8
    torch.testing.assert_close(result(inputs), nn.functional.linear(rounded, result.quantised_weight(), layer.bias))
    result.train()(inputs).square().sum().backward()
    assert result.input_gain.grad is not None
    assert float(result.input_gain.grad) != 0
    assert result.quantised_input(inputs.bfloat16()).dtype == torch.float32
    assert "bits=8, groups=1, input_bits=3" in repr(result)
