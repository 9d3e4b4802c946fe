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
"""Logits (B, C) and labels (B,) to a value per sample (B,), which an attack raises."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest wrong logit minus the label's: (B,); above 0 for what is misclassified.

    As the loss of an attack it shows gradients that are hidden by a saturated softmax, since it has none.
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
    """Look, within ``radius`` of each image, for one that the network gets wrong.

    From x_0 drawn uniformly around the image, x <- clip(x + step_size sign(dL/dx)), with L the cross-entropy of the
    label, unless another is given, and the clip to [image - radius, image + radius] and to [0, 1]. A sample stops as
    soon as it is misclassified and costs nothing from then on. Where none of its restarts gets that far it is given the
    point, of all that were visited, at which the largest wrong logit came closest to the label's.

    The network is in eval mode meanwhile; its modes, buffers and gradients are as before afterwards. The caller may be
    in ``no_grad`` or ``inference_mode``.

    Args:
        model: maps raw pixels (B, ...) in [0, 1] to logits (B, C).
        inputs: (B, ...) pixels in [0, 1].
        labels: (B,) int64 classes, 0 .. C - 1.
        radius: how far each value may be moved, of the range of 1.
        steps: at most so many a restart.
        step_size: ``None`` is 2.5 radius / steps [ours]: from anywhere, each face of the box is within reach.
        restarts: how many starts are tried, the worst of which counts.
        loss: L, where that is not the cross-entropy: ``margin``, or your own.
        generator: of the starts, on the CPU; ``None`` is torch's own.

    Returns:
        (B, ...), detached. An input that is misclassified as it is comes back unmoved.

    Raises:
        ValueError: a negative radius or step size, no step or no restart.
        NonFiniteError: a logit or a gradient is NaN or infinite.
    """
    if radius < 0 or steps < 1 or restarts < 1 or (step_size is not None and step_size < 0):
        raise ValueError(
            "radius and step_size must be 0 or more, steps and restarts 1 or more, "
            f"got {radius}, {step_size}, {steps} and {restarts}"
        )
    pace = 2.5 * radius / steps if step_size is None else step_size
    # All starts of an image at once: so it gets the same ones whatever batch it is in.
    starts = (2 * torch.rand(len(inputs), restarts, *inputs.shape[1:], generator=generator) - 1) * radius
    with eval_mode(model), torch.inference_mode(False), torch.no_grad():
        inputs, labels = inputs.detach().clone(), labels.clone()  # copies take part in gradients, whoever calls
        low, high = (inputs - radius).clamp(min=0), (inputs + radius).clamp(max=1)
        logits = at_least_float32(model(inputs))
        worst, closest = inputs.clone(), margin(logits, labels)
        standing = logits.argmax(1) == labels
        for restart in starts.to(inputs).unbind(1):
            places = standing.nonzero().squeeze(1)
            images = inputs[places] + restart[places]
            for _ in range(steps + 1):  # one more look than steps
                if not len(places):
                    break
                images = images.clamp(low[places], high[places])
                logits, gradient = input_gradient(model, images, labels[places], loss)
                lead, wrong = margin(logits, labels[places]), logits.argmax(1) != labels[places]
                kept = wrong | (lead > closest[places])
                worst[places[kept]], closest[places[kept]] = images[kept], lead[kept]
                standing[places] = ~wrong
                places, images = places[~wrong], (images + pace * gradient.sign())[~wrong]
    return worst


def input_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
    """The logits (B, C) and the gradient (B, ...) of each sample's loss by its own input, both detached.

    The loss is the cross-entropy unless another is given.

    A network whose logits do not depend on the input in a differentiable way has a gradient of 0. The network runs in
    the mode that it is in.

    Raises:
        NonFiniteError: one of them is NaN or infinite.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
        inputs = inputs.detach().clone().requires_grad_()
        logits = at_least_float32(model(inputs))
        value = (loss or _cross_entropy)(logits, labels.clone()).sum()
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, inputs, materialize_grads=True)
        else:
            gradient = torch.zeros_like(inputs)
    bad = ~(logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1))
    if bad.any():
        raise NonFiniteError(
            f"the logits or the input gradients of {int(bad.sum())} of {len(bad)} attacked images are NaN or infinite: "
            "the network cannot be attacked by its gradient there; look for a square root or a logarithm of 0"
        )
    return logits.detach(), gradient


def zero_gradients(gradient: Tensor) -> Tensor:
    """Where a sample's whole input gradient is exactly 0, so that no attack by gradient can move it: (B, ...) to (B,).

    A sign that the network hides its gradient rather than resists (or that its softmax is saturated), and that its
    robustness is overestimated.
    """
    return (gradient == 0).flatten(1).all(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")
