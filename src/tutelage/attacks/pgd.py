"""Projected gradient descent in the maximum norm (PGD): Madry et al., ICLR 2018, arXiv 1706.06083."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import NonFiniteError
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import at_least_float32

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C) and labels (B,) to a value per sample (B,), which an attack maximises."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest wrong logit minus the label's, (B,): above 0 for misclassified samples.

    As the loss of an attack, its gradients do not vanish, unlike those of a saturated softmax.
    """
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    radius: float,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search for a misclassified image within ``radius`` of each image (PGD).

    From x_0 drawn uniformly around the image, x <- clip(x + step_size sign(dL/dx)), where L is the cross-entropy of the
    label by default and the clip is to [image - radius, image + radius] and to [0, 1]. A sample stops as soon as it is
    misclassified. If none of its restarts succeeds, the result is the visited point with the largest ``margin``.

    The network runs in eval mode; its modes, buffers and gradients do not change. The caller may be in ``no_grad`` or
    ``inference_mode``.

    Args:
        model: maps raw pixels (B, ...) in [0, 1] to logits (B, C).
        inputs: (B, ...) pixels in [0, 1].
        labels: (B,) int64 classes, 0 .. C - 1.
        radius: the maximum change of each value, in the range [0, 1].
        steps: the maximum number of steps per restart.
        step_size: ``None`` for 2.5 radius / steps (our choice), with which each face of the box can be reached from any
            start.
        restarts: the number of starts; the worst result counts.
        loss: L, if it is not the cross-entropy: for example ``margin``.
        generator: of the starts, on the CPU; ``None`` for torch's global generator.

    Returns:
        (B, ...), detached. An input that is misclassified already is returned unchanged.

    Raises:
        ValueError: a negative radius or step size, or no step or restart.
        NonFiniteError: a logit or a gradient is NaN or infinite.
    """
    if radius < 0 or steps < 1 or restarts < 1 or (step_size is not None and step_size < 0):
        raise ValueError(
            "radius and step_size must be 0 or more, steps and restarts 1 or more, "
            f"got {radius}, {step_size}, {steps} and {restarts}"
        )
    step_size = 2.5 * radius / steps if step_size is None else step_size
    # All starts of an image are drawn at once, so that they do not depend on the batch.
    starts = (2 * torch.rand(len(inputs), restarts, *inputs.shape[1:], generator=generator) - 1) * radius
    with eval_mode(model), torch.inference_mode(False), torch.no_grad():
        inputs, labels = inputs.detach().clone(), labels.clone()  # copies, since inference tensors have no gradients
        low, high = (inputs - radius).clamp(min=0), (inputs + radius).clamp(max=1)
        logits = at_least_float32(model(inputs))
        worst, closest = inputs.clone(), margin(logits, labels)
        correct = logits.argmax(1) == labels
        for restart in starts.to(inputs).unbind(1):
            indices = correct.nonzero().squeeze(1)
            images = inputs[indices] + restart[indices]
            for _ in range(steps + 1):  # one more evaluation than steps
                if not len(indices):
                    break
                images = images.clamp(low[indices], high[indices])
                logits, gradient = input_gradient(model, images, labels[indices], loss)
                margins, success = margin(logits, labels[indices]), logits.argmax(1) != labels[indices]
                better = success | (margins > closest[indices])
                worst[indices[better]], closest[indices[better]] = images[better], margins[better]
                correct[indices] = ~success
                indices, images = indices[~success], (images + step_size * gradient.sign())[~success]
    return worst


def input_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
    """The logits (B, C) and the gradient (B, ...) of each sample's loss by its input, both detached.

    The loss is the cross-entropy by default. The gradient is 0 if the logits do not depend on the input in a
    differentiable way. The mode of the network does not change.

    Raises:
        NonFiniteError: a logit or a gradient is NaN or infinite.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        inputs = inputs.detach().clone().requires_grad_()
        logits = at_least_float32(model(inputs))
        value = (loss or _cross_entropy)(logits, labels.clone()).sum()
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, inputs, materialize_grads=True)
        else:
            gradient = torch.zeros_like(inputs)
    nonfinite = ~(logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1))
    if nonfinite.any():
        raise NonFiniteError(
            f"the logits or the input gradients of {int(nonfinite.sum())} of {len(nonfinite)} attacked images are NaN "
            "or infinite, so that a gradient attack is impossible; look for a square root or a logarithm of 0"
        )
    return logits.detach(), gradient


def zero_gradients(gradient: Tensor) -> Tensor:
    """Which samples have an input gradient of exactly 0, so that no gradient attack can change them: (B, ...) to (B,).

    This means that the network masks its gradient (or that its softmax is saturated) and that its robustness is
    overestimated.
    """
    return (gradient == 0).flatten(1).all(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")
