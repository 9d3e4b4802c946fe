"""Gradients of a loss by the input: averaged over the draws of a random network, replaced where layers have none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.attacks.criteria import Loss
from tutelage.attacks.surrogates import DECLARED, declared_surrogates
from tutelage.errors import NonFiniteError
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import at_least_float32


def input_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss: Loss | None = None,
    *,
    draws: int = 1,
    bpda: str = DECLARED,
) -> tuple[Tensor, Tensor]:
    """The logits (B, C) and the gradient (B, ...) of each sample's loss by its input, both detached.

    The loss is the cross-entropy by default. The gradient is 0 if the logits do not depend on the input in a
    differentiable way; layers that declare surrogate gradients have these, as ``bpda`` says (``declared_surrogates``).
    The mode of the network does not change.

    With several draws, the network runs as often, the gradient is the mean over the passes (expectation over
    transformation, EOT: Athalye et al. 2018, arXiv 1707.07397), and the logits are the logarithms of the mean
    probabilities.

    Raises:
        NonFiniteError: a logit or a gradient is NaN or infinite.
    """
    logits, gradient = _gradient(model, inputs, labels, loss, draws, bpda)
    nonfinite = ~(logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1))
    if nonfinite.any():
        raise NonFiniteError(
            f"the logits or the input gradients of {int(nonfinite.sum())} of {len(nonfinite)} attacked images are NaN "
            "or infinite, so that a gradient attack is impossible; look for a square root or a logarithm of 0"
        )
    return logits, gradient


def without_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss: Loss | None = None,
    *,
    draws: int = 1,
    bpda: str = DECLARED,
) -> Tensor:
    """Which samples have an input gradient that is 0 or NaN, so that a gradient attack is blind there: (B,) bool.

    The network is in eval mode; its mode is restored.
    """
    with eval_mode(model):
        _, gradient = _gradient(model, inputs, labels, loss, draws, bpda)
    return zero_gradients(gradient) | ~gradient.flatten(1).isfinite().all(1)


def zero_gradients(gradient: Tensor) -> Tensor:
    """Which samples have an input gradient of exactly 0, so that no gradient attack can change them: (B, ...) to (B,).

    This means that the network masks its gradient (or that its softmax is saturated) and that its robustness is
    overestimated.
    """
    return (gradient == 0).flatten(1).all(1)


def mean_prediction(model: nn.Module, inputs: Tensor, draws: int = 1) -> Tensor:
    """The logits (B, C) of one pass, or the logarithms of the mean probabilities of several, without gradients."""
    return _mean([at_least_float32(model(inputs)) for _ in range(draws)])


def _mean(passes: list[Tensor]) -> Tensor:
    if len(passes) == 1:
        return passes[0]
    log_probabilities = torch.stack([logits.log_softmax(1) for logits in passes])
    return log_probabilities.logsumexp(0) - torch.tensor(float(len(passes))).log().item()


def _gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None, draws: int, bpda: str
) -> tuple[Tensor, Tensor]:
    with declared_surrogates(model, bpda):
        passes = [_one_gradient(model, inputs, labels, loss) for _ in range(draws)]
    if draws == 1:
        return passes[0]
    return _mean([logits for logits, _ in passes]), torch.stack([gradient for _, gradient in passes]).mean(0)


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
