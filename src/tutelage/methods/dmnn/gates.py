"""Gates that depend on the input, and batch normalisation over the samples that pass a gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.models.outputs import at_least_float32


class Gates(nn.Module):
    """Binary gates from logits a: g = 1 if a > 0, else 0.

        train mode:  s = sigmoid((a + L) / tau),   g = 1 if a + L > 0, else 0,   dg/da = ds/da

    L is logistic noise, so that g = 1 with probability sigmoid(a): a binary concrete variable with a straight-through
    gradient. There is no noise in eval mode.

    Attributes:
        temperature: tau, (). A lower one concentrates the gradient on logits near 0.
        open: (), if 1, all gates are 1 in train mode, without gradients.
    """

    temperature: Tensor
    open: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.register_buffer("open", torch.zeros(()), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, N) to (B, N), 0 or 1, at least float32."""
        logits = at_least_float32(logits)
        if not self.training:
            return (logits > 0).to(logits.dtype)
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        gates = straight_through(logits + torch.logit(uniform), self.temperature)
        return gates.where(self.open == 0, 1.0)


def straight_through(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """1 where the logit is above 0, else 0, with the gradient of sigmoid(logit / temperature); the same shape."""
    soft = torch.sigmoid(logits / temperature)
    return (logits > 0).to(soft.dtype) + (soft - soft.detach())


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of some samples of the batch.

    In train mode, mean and variance are over the samples of weight 1 and all positions; samples of weight 0 are
    normalised by the same statistics and do not change the running ones. Without any sample of weight 1 the running
    statistics are used and remain. In eval mode it is ordinary batch normalisation.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to the same shape; ``weight`` is (B,), 0 or 1, without gradient; ``None`` means all 1."""
        if not self.training or weight is None:
            return super().forward(input)
        values = at_least_float32(input)
        weight = weight.to(values.dtype)
        count = weight.sum() * input[0, 0].numel()
        occupied = count > 0
        mean = (weight @ values.sum((2, 3)) / count.clamp(min=1)).where(occupied, self.running_mean)
        centred = values - mean[:, None, None]
        variance = (weight @ centred.square().sum((2, 3)) / count.clamp(min=1)).where(occupied, self.running_var)
        if self.track_running_stats:
            with torch.no_grad():
                rate = self.momentum * occupied
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean), rate.to(self.running_mean))
                self.running_var.lerp_(
                    unbiased.where(occupied, self.running_var).to(self.running_var), rate.to(self.running_var)
                )
                self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
