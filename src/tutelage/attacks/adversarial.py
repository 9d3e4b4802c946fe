"""The batch at hand, moved against the network that learns: adversarial training (Madry et al. 2018, 1706.06083)."""

from __future__ import annotations

from dataclasses import replace

import torch

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.term import View


class AdversarialSamples(View):
    """Each image, moved to raise its cross-entropy by projected gradient descent in the maximum norm.

    From x_0 drawn uniformly within ``radius``, ``steps`` times x <- clip(x + step_size sign(dCE/dx)), with the clip to
    [image - radius, image + radius] and to [0, 1]. Unlike ``pgd``, which evaluates, it makes every step for every
    sample, and the network stays in the mode it is in: in train mode batch normalisation uses the batch and each step
    moves its running averages, as in the authors' code. No parameter gets a gradient. A sample without a label stays
    where it is.

    Args:
        model: the network that is attacked, the learner's own.
        radius, step_size: of the range [0, 1] of the pixels.
        steps: each is a pass of the network, and is counted as one.
        clamp: whether images stay in [0, 1]; the authors' code of SAT lets them leave it while it trains.
    """

    def __init__(self, model: Tapped, radius: float, step_size: float, steps: int, *, clamp: bool = True) -> None:
        check_tapped("AdversarialSamples", model)
        if not (radius >= 0 and step_size >= 0 and steps >= 1):
            raise ValueError(
                f"radius and step_size must be 0 or more and steps 1 or more, got {radius}, {step_size} and {steps}"
            )
        self.model, self.radius, self.step_size, self.steps, self.clamp = model, radius, step_size, steps, clamp

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The moved images, with everything else as it was."""
        inputs, targets = batch.inputs.detach(), batch.targets
        low, high = inputs - self.radius, inputs + self.radius
        if self.clamp:
            low, high = low.clamp(min=0), high.clamp(max=1)
        start = inputs + torch.empty_like(inputs).uniform_(-self.radius, self.radius)
        if targets.ndim == 1:
            known = (targets != UNLABELLED).view(-1, *[1] * (inputs.ndim - 1))
            start = torch.where(known, start, inputs)
        images = start.clamp(low, high)
        for _ in range(self.steps):
            with torch.enable_grad():
                images.requires_grad_()
                loss = cross_entropy(self.model.tap(images)["logits"], targets).sum()
                (gradient,) = torch.autograd.grad(loss, images, materialize_grads=True)
            images = (images.detach() + self.step_size * gradient.sign()).clamp(low, high)
        return replace(batch, inputs=images)
