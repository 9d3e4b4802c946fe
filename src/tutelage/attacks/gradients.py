"""Gradients of a loss by the input: averaged over the draws of a random network, replaced where layers have none."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.attacks.criteria import Loss
from tutelage.errors import NonFiniteError
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import at_least_float32


def input_gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None = None, *, draws: int = 1
) -> tuple[Tensor, Tensor]:
    """The logits (B, C) and the gradient (B, ...) of each sample's loss by its input, both detached.

    The loss is the cross-entropy by default. The gradient is 0 if the logits do not depend on the input in a
    differentiable way. The mode of the network does not change.

    With several draws, the network runs as often, the gradient is the mean over the passes (expectation over
    transformation, EOT: Athalye et al. 2018, arXiv 1707.07397), and the logits are the logarithms of the mean
    probabilities.

    Raises:
        NonFiniteError: a logit or a gradient is NaN or infinite.
    """
    logits, gradient = _gradient(model, inputs, labels, loss, draws)
    nonfinite = ~(logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1))
    if nonfinite.any():
        raise NonFiniteError(
            f"the logits or the input gradients of {int(nonfinite.sum())} of {len(nonfinite)} attacked images are NaN "
            "or infinite, so that a gradient attack is impossible; look for a square root or a logarithm of 0"
        )
    return logits, gradient


def without_gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None = None, *, draws: int = 1
) -> Tensor:
    """Which samples have an input gradient that is 0 or NaN, so that a gradient attack is blind there: (B,) bool.

    The network is in eval mode; its mode is restored.
    """
    with eval_mode(model):
        _, gradient = _gradient(model, inputs, labels, loss, draws)
    return zero_gradients(gradient) | ~gradient.flatten(1).isfinite().all(1)


def zero_gradients(gradient: Tensor) -> Tensor:
    """Which samples have an input gradient of exactly 0, so that no gradient attack can change them: (B, ...) to (B,).

    This means that the network masks its gradient (or that its softmax is saturated) and that its robustness is
    overestimated.
    """
    return (gradient == 0).flatten(1).all(1)


def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None, draws: int) -> tuple[Tensor, Tensor]:
    passes = [_one_gradient(model, inputs, labels, loss) for _ in range(draws)]
    if draws == 1:
        return passes[0]
    log_probabilities = torch.stack([logits.log_softmax(1) for logits, _ in passes])
    return log_probabilities.logsumexp(0) - torch.tensor(float(draws)).log().item(), torch.stack(
        [gradient for _, gradient in passes]
    ).mean(0)


def _one_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        inputs = inputs.detach().clone().requires_grad_()
        logits = at_least_float32(model(inputs))
        value = (loss or _cross_entropy)(logits, labels.clone()).sum()
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, inputs, materialize_grads=True)
        else:
            gradient = torch.zeros_like(inputs)
    return logits.detach(), gradient


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


class SurrogateGradient(nn.Module):
    """A layer whose gradient is that of a differentiable replacement (BPDA: Athalye et al. 2018, arXiv 1802.00420).

    The output is exactly ``layer(x)``; the gradient is that of ``replacement(x)``. Wrap a step of a defence that has
    no useful gradient, such as rounding or compression, or a whole network, and attack the result:

        PGD(radius=0.03)(nn.Sequential(SurrogateGradient(rounding), network), images, labels)

    Args:
        layer: any function of a tensor.
        replacement: a differentiable function with an output of the same shape; the identity by default.
    """

    def __init__(self, layer: Any, replacement: Any = None) -> None:
        super().__init__()
        self.layer, self.replacement = layer, nn.Identity() if replacement is None else replacement

    def forward(self, inputs: Tensor) -> Tensor:
        """``layer(inputs)``."""
        with torch.no_grad():
            value: Tensor = self.layer(inputs)
        if not (torch.is_grad_enabled() and inputs.requires_grad):
            return value
        smooth = self.replacement(inputs)
        if smooth.shape != value.shape:
            raise ValueError(
                f"the replacement returns {tuple(smooth.shape)} and the layer {tuple(value.shape)}; "
                "give a replacement with an output of the same shape"
            )
        result: Tensor = _Replaced.apply(smooth, value)  # type: ignore[no-untyped-call]
        return result


class _Replaced(torch.autograd.Function):
    """The second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
