"""Layers with weights and inputs of few bits, for training with a straight-through estimator.

A quantised layer is the original layer with the same weights under the same names; its forward pass rounds them. The
scales are trained. ``surgery/quantise.py`` turns the layers of a network into such layers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

CANDIDATES = 100
SMALLEST_CLIP = 0.2  # the smallest candidate, as a share of the largest magnitude
SMALLEST_SCALE, SMALLEST_GAIN = 1e-12, 1e-2  # a scale of 0 would be a division by 0
CALIBRATED_VALUES = 1 << 16  # of a layer's inputs from which its range is determined


def code_range(bits: int) -> tuple[int, int]:
    """The smallest and the largest code of a signed integer: -2^(b-1) and 2^(b-1) - 1."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def fake_quantise(values: Tensor, scale: Tensor, low: float, high: float, zero: Tensor | float = 0.0) -> Tensor:
    """Q(x) = s (clip(round(x / s) + z, low, high) - z), with the gradients of LSQ (Esser et al. 2020).

    The gradient of round is 1 (straight-through): that of Q with respect to x is 1 inside the clip and 0 outside, and
    with respect to s it is round(x / s) - x / s inside and low - z or high - z outside.

    Args:
        values: x, any shape.
        scale: s > 0, broadcast against ``values``.
        low, high: the smallest and the largest code.
        zero: z, the integer code of 0; no gradient reaches it.

    Returns:
        The shape of ``values``.
    """
    position = (values / scale + zero).clamp(low, high)
    codes = position + (position.round() - position).detach()  # exact: both are within a factor of 2, or one is 0
    return (codes - zero) * scale


def channel_groups(weight: Tensor, groups: int) -> Tensor:
    """The group of each output channel: channels sorted by max |W_o| and divided evenly, (O, ...) to (O,) int64.

    With one group per channel, the groups have the order of the channels.
    """
    count = len(weight)
    if groups >= count:
        return torch.arange(count, device=weight.device)
    order = weight.detach().abs().flatten(1).amax(1).argsort(stable=True)
    group = torch.empty_like(order)
    group[order] = torch.arange(count, device=weight.device) * groups // count
    return group


def group_scales(weight: Tensor, group: Tensor, bits: int, candidates: int = CANDIDATES) -> Tensor:
    """The scale of each group that minimises ||W_g - Q(W_g; s)||^2, (G,).

    Args:
        weight: W, (O, ...).
        group: of each channel, (O,) int64, 0 to G - 1.
        bits: b.
        candidates: the number of scales that are tried, from max |W_g| / (2^(b-1) - 1) down to 0.2 of it; with 1, the
            first one.
    """
    weight = weight.detach().flatten(1)
    low, high = code_range(bits)
    largest = torch.zeros(int(group.max()) + 1, dtype=weight.dtype, device=weight.device)
    largest = largest.scatter_reduce(0, group, weight.abs().amax(1), "amax")
    largest = largest.where(largest > 0, float(high))  # a group of zeros: any scale
    shares = torch.linspace(1.0, SMALLEST_CLIP, candidates).tolist()
    errors = []
    for share in shares:
        scale = (share / high * largest)[group, None]
        error = (weight - fake_quantise(weight, scale, low, high)).square().sum(1)
        errors.append(torch.zeros_like(largest).index_add(0, group, error))
    best = torch.stack(errors).argmin(0)
    return torch.tensor(shares, dtype=weight.dtype, device=weight.device)[best] / high * largest


class InputRange(NamedTuple):
    """The scale and the code of 0 of a layer's inputs, both ()."""

    scale: Tensor
    zero: Tensor


def input_range(inputs: Tensor, bits: int, candidates: int = CANDIDATES) -> InputRange:
    """The clip of inputs with the smallest squared error; unsigned if no input is negative, else asymmetric.

    Args:
        inputs: any shape; of many values, evenly spaced ones are used.
        bits: b; codes are 0 to 2^b - 1.
        candidates: the number of clips that are tried, from the whole range down to 0.2 of it.
    """
    values = inputs.detach().float().flatten()
    values = values[:: max(1, len(values) // CALIBRATED_VALUES)]
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    codes, width = 2**bits - 1, high - low
    width = width.where(width > 0, 1.0)
    zero = (-low / width * codes).round()
    scales = torch.linspace(1.0, SMALLEST_CLIP, candidates, device=values.device) * width / codes
    errors = [(values - fake_quantise(values, scale, 0, codes, zero)).square().mean() for scale in scales]
    return InputRange(scales[torch.stack(errors).argmin()], zero)


def _with_gradient_factor(values: Tensor, factor: float) -> Tensor:
    """The same values; their gradient is multiplied by a factor."""
    part = values * factor
    return values.detach() + (part - part.detach())


class Quantised(nn.Module):
    """What quantised layers have in common; a mixin of a layer class.

    A scale is a fixed value times a trained gain, which begins at 1, so that steps of Adam change large and small
    scales by the same share. The gradients of gains are multiplied by 1 / sqrt(N high), as LSQ does with those of
    scales; N is the number of weights that share the scale, or the number of inputs in a sample. Under SGD gains change
    slowly.

    Attributes:
        bits: of the weights.
        input_bits: of the inputs; 0 for unchanged inputs.
        weight_scale, weight_gain: (G,); the gain is trained.
        weight_group: the group of each output channel, (O,) int64.
        input_scale, input_gain, input_zero: (), if inputs are quantised; the gain is trained.
        fixed: whether ``weight`` is rounded already, for deployment.
    """

    bits: int
    input_bits: int
    weight: Tensor
    weight_scale: Tensor
    weight_gain: Tensor
    weight_group: Tensor
    input_scale: Tensor
    input_gain: Tensor
    input_zero: Tensor
    fixed: bool = False

    def start_quantisation(self, bits: int, groups: int, input_bits: int = 0, inputs: Tensor | None = None) -> None:
        """Create the scales, from the weights and, if inputs are quantised, from a batch of them."""
        self.bits, self.input_bits = bits, input_bits
        group = channel_groups(self.weight, groups)
        scale = group_scales(self.weight, group, bits).clamp(min=SMALLEST_SCALE)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_group", group)
        self.weight_gain = nn.Parameter(torch.ones_like(scale))
        if input_bits and inputs is not None:
            input_scale, zero = (value.to(self.weight) for value in input_range(inputs, input_bits))
            self.register_buffer("input_scale", input_scale.clamp(min=SMALLEST_SCALE))
            self.register_buffer("input_zero", zero)
            self.input_gain = nn.Parameter(torch.ones_like(input_scale))

    def scales(self) -> Tensor:
        """The scale of each group, (G,)."""
        _, high = code_range(self.bits)
        count = self.weight.numel() / len(self.weight_scale)
        return self._scaled(self.weight_scale, self.weight_gain, 1 / math.sqrt(count * high))

    def _scaled(self, scale: Tensor, gain: Tensor, factor: float) -> Tensor:
        if self.training:
            gain = _with_gradient_factor(gain, factor)
        return scale * gain.clamp(min=SMALLEST_GAIN)

    def _per_channel(self, scales: Tensor) -> Tensor:
        return scales[self.weight_group].view(-1, *(1,) * (self.weight.ndim - 1))

    def quantised_weight(self) -> Tensor:
        """Q(W; s), the shape of the weights."""
        if self.fixed:
            return self.weight
        return fake_quantise(self.weight, self._per_channel(self.scales()), *code_range(self.bits))

    def quantised_input(self, inputs: Tensor) -> Tensor:
        """The rounded inputs, at least float32; the inputs themselves if they are not quantised."""
        if not self.input_bits:
            return inputs
        codes = 2**self.input_bits - 1
        factor = 1 / math.sqrt(inputs[0].numel() * codes)
        scale = self._scaled(self.input_scale, self.input_gain, factor)
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return fake_quantise(values, scale, 0, codes, self.input_zero)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The integers of the weights, int8, -2^(b-1) to 2^(b-1) - 1."""
        return (self.weight / self._per_channel(self.scales())).clamp(*code_range(self.bits)).round().to(torch.int8)

    @torch.no_grad()
    def round_weights(self) -> None:
        """Replace the weights by the rounded ones and the gains of their scales by 1, which changes no output."""
        self.weight.copy_(self.quantised_weight())
        self.weight_scale.copy_(self.scales())
        self.weight_gain.fill_(1)

    def fix_weights(self) -> None:
        """Round the weights for good, for deployment: the forward pass does not round them again."""
        self.round_weights()
        self.fixed = True

    def extra_repr(self) -> str:
        """The layer's own text, and the bits."""
        inputs = f", input_bits={self.input_bits}" if self.input_bits else ""
        return f"{super().extra_repr()}, bits={self.bits}, groups={len(self.weight_scale)}{inputs}"


class QuantisedConv2d(Quantised, nn.Conv2d):
    """A convolution with quantised weights and inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, I, H, W) to (B, O, H', W')."""
        outputs: Tensor = self._conv_forward(self.quantised_input(inputs), self.quantised_weight(), self.bias)
        return outputs


class QuantisedLinear(Quantised, nn.Linear):
    """A linear layer with quantised weights and inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        outputs: Tensor = nn.functional.linear(self.quantised_input(inputs), self.quantised_weight(), self.bias)
        return outputs


KINDS: dict[type[nn.Module], type[Quantised]] = {nn.Conv2d: QuantisedConv2d, nn.Linear: QuantisedLinear}
"""The layers that can be quantised. Subclasses, which may compute something else, cannot."""


def quantised_layers(network: nn.Module) -> dict[str, Quantised]:
    """The quantised layers of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Quantised)}
