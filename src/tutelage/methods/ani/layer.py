"""Noise whose strength follows the standard deviation of what it is added to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.outputs import at_least_float32

Per = Literal["channel", "layer"]
Source = Literal["batch", "running"]

MOMENTUM = 0.1  # of the running standard deviation


def deviation(values: Tensor, axis: int, per: Per = "channel") -> Tensor:
    """The standard deviation of each channel over all other axes, (C,), or that of the whole tensor, ().

    The mean square is divided by the number of values, not by one less, so that a single value has deviation 0.

    Args:
        values: h, such as (B, C, H, W), float.
        axis: of the channels.
        per: "channel" or "layer".
    """
    if per == "layer":
        return values.std(correction=0)
    return values.transpose(0, axis).flatten(1).std(1, correction=0)


class AdaptiveNoise(nn.Module):
    """Adds Gaussian noise in proportion to the standard deviation of its input, in train and in eval mode.

        h~ = h + s sigma eps,   eps ~ N(0, 1) for each element

    sigma is the ``deviation`` of h, without a gradient: of the batch in train mode, and in eval mode of the batch or a
    running average (the mean of the first ten training batches, then of momentum 0.1; before these, the batch's). So
    Var(h~ - h) = s^2 sigma^2, a signal-to-noise ratio of 1 / s^2 for any scale of h.

    Args:
        scale: s, at least 0.
        channels: C.
        axis: the axis of the channels.
        per: whether sigma is a number per channel or one per layer.
        source: sigma in eval mode. "running" makes the noise of a sample independent of the other samples in its batch.
        learnable: whether s = softplus(rho) is trained, from ``scale``, which must be positive.

    Attributes:
        silent: whether the layer is the identity; see ``silenced``.
    """

    is_random = True

    sigma: Tensor
    batches: Tensor

    def __init__(
        self,
        scale: float,
        channels: int,
        axis: int = 1,
        *,
        per: Per = "channel",
        source: Source = "running",
        learnable: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.axis, self.per, self.source = scale, axis, per, source
        self.silent = False
        self.rho = nn.Parameter(torch.tensor(scale + math.log(-math.expm1(-scale)))) if learnable else None
        self.register_buffer("sigma", torch.zeros(channels if per == "channel" else ()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, activations: Tensor) -> Tensor:
        """h, with C channels along ``axis``, to h~."""
        if self.silent:
            return activations
        values = at_least_float32(activations)
        sigma = self._sigma(values.detach())
        if self.per == "channel":
            shape = [1] * values.ndim
            shape[self.axis] = -1
            sigma = sigma.view(shape)
        # The same numbers for each memory layout.
        noise = torch.randn(values.shape, dtype=values.dtype, device=values.device)
        scale = self.scale if self.rho is None else F.softplus(self.rho)
        return (values + scale * sigma * noise).to(activations.dtype)

    @torch.no_grad()
    def _sigma(self, values: Tensor) -> Tensor:
        current = deviation(values, self.axis, self.per)
        if self.training:
            self.batches += 1
            self.sigma.lerp_(current.to(self.sigma.dtype), (1 / self.batches).clamp(min=MOMENTUM))
            return current
        return current if self.source == "batch" else self.sigma.to(current.dtype).where(self.batches > 0, current)

    def extra_repr(self) -> str:
        """The settings that ``print`` displays."""
        return f"scale={self.scale}, per={self.per}, source={self.source}, learnable={self.rho is not None}"


@contextmanager
def silenced(network: nn.Module) -> Iterator[None]:
    """A context in which the network's ``AdaptiveNoise`` layers are identities, so that it is deterministic."""
    layers = [(layer, layer.silent) for layer in network.modules() if isinstance(layer, AdaptiveNoise)]
    for layer, _ in layers:
        layer.silent = True
    try:
        yield
    finally:
        for layer, silent in layers:
            layer.silent = silent
