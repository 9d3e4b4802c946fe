"""Adversarial samples for training: Madry et al. 2018, arXiv 1706.06083."""

from __future__ import annotations

from dataclasses import replace

import torch

from tutelage.attacks.surrogates import declared_surrogates
from tutelage.data.batch import UNLABELLED, Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped, check_tapped
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.terms.term import View


class AdversarialSamples(View):
    """The images of the batch, perturbed by projected gradient descent (PGD) in the maximum norm.

    From x_0 drawn uniformly within ``radius``, ``steps`` times x <- clip(x + step_size sign(dCE/dx)), where the clip is
    to [image - radius, image + radius] and to [0, 1]. Unlike ``pgd``, which is for evaluation, it takes every step for
    every sample and does not change the mode of the network: in train mode, batch normalisation uses the batch, and
    each step updates its running statistics, as in the authors' code. No parameter gets a gradient. Samples without a
    label are not perturbed. Layers that declare surrogate gradients have these during the attack.

    Args:
        model: the network to attack, the learner's own.
        radius, step_size: in the pixels' range [0, 1].
        steps: the number of steps; each counts as a forward pass of the network.
        clamp: whether images stay in [0, 1]; in the authors' code of SAT they may leave it during training.
        random_start: false to start from the image itself; with one step of ``radius`` this is the fast gradient sign
            method (Goodfellow et al. 2015, arXiv 1412.6572).
    """

    def __init__(
        self,
        model: Tapped,
        radius: float,
        step_size: float,
        steps: int,
        *,
        clamp: bool = True,
        random_start: bool = True,
    ) -> None:
        check_tapped("AdversarialSamples", model)
        if not (radius >= 0 and step_size >= 0 and steps >= 1):
            raise ValueError(
                f"radius and step_size must be 0 or more and steps 1 or more, got {radius}, {step_size} and {steps}"
            )
        self.model, self.radius, self.step_size, self.steps, self.clamp = model, radius, step_size, steps, clamp
        self.random_start = random_start

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The perturbed images; the other fields of the batch do not change."""
        inputs, targets = batch.inputs.detach(), batch.targets
        low, high = inputs - self.radius, inputs + self.radius
        if self.clamp:
            low, high = low.clamp(min=0), high.clamp(max=1)
        start = inputs
        if self.random_start:
            start = inputs + torch.empty_like(inputs).uniform_(-self.radius, self.radius)
        if targets.ndim == 1:
            is_labelled = (targets != UNLABELLED).view(-1, *[1] * (inputs.ndim - 1))
            start = torch.where(is_labelled, start, inputs)
        images = start.clamp(low, high)
        for _ in range(self.steps):
            with torch.enable_grad(), declared_surrogates(self.model) as any_replaced:
                images.requires_grad_()
                loss = cross_entropy(self.model.tap(images, eager=any_replaced)["logits"], targets).sum()
                (gradient,) = torch.autograd.grad(loss, images, materialize_grads=True)
            images = (images.detach() + self.step_size * gradient.sign()).clamp(low, high)
        return replace(batch, inputs=images)
