"""The fast gradient sign method (FGSM): Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tutelage.attacks.attack import BPDA, Attack, Draws, Radius
from tutelage.attacks.gradients import input_gradient, without_gradient
from tutelage.attacks.norms import Norm, project
from tutelage.attacks.surrogates import DECLARED


class FGSM(Attack):
    """One step from the image: x + radius sign(dL/dx), clipped to [0, 1], with L the cross-entropy.

    The maximum norm only. It is weak: use it to compare with published numbers, not to claim robustness.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    radius: Radius
    draws: Draws = 1
    bpda: BPDA = DECLARED

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        logits, gradient = input_gradient(model, inputs, labels, self.criterion.loss, draws=self.draws, bpda=self.bpda)
        moved = project(inputs + self.radius * gradient.sign(), inputs, self.norm, self.radius)
        done = self.criterion.success(logits, labels).view(-1, *[1] * (inputs.ndim - 1))
        return inputs.where(done, moved)

    def blind(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Where the gradient of the cross-entropy is 0 or NaN."""
        return without_gradient(model, inputs, labels, self.criterion.loss, draws=self.draws, bpda=self.bpda)


ATTACK = FGSM
