"""Projected gradient descent (PGD): Madry et al., ICLR 2018, arXiv 1706.06083."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.attacks.attack import BPDA, Attack, Draws, Radius
from tutelage.attacks.criteria import Loss, margin
from tutelage.attacks.gradients import input_gradient, mean_prediction, without_gradient
from tutelage.attacks.norms import project, steepest
from tutelage.attacks.surrogates import DECLARED


class PGD(Attack):
    """Search for an adversarial image within ``radius`` of each image by projected gradient ascent.

    From x_0 drawn uniformly around the image, x <- P(x + step_size s(dL/dx)), where s is the steepest step of norm 1
    (sign for ``linf``) and P projects onto the ball and [0, 1]. A sample stops as soon as it is adversarial. If none
    of its restarts succeeds, the result is the visited point with the largest margin of the criterion.

    With several ``draws``, L is that of single passes, averaged (EOT), the margin is that of the mean prediction, and
    every sample takes all steps: the result is the visited point with the largest margin.

    L is the cross-entropy (``ce``), the margin in logits, whose gradient does not vanish with a saturated softmax, or
    your own function of logits (B, C) and labels (B,).

    For ``l1`` and ``l2`` the start is drawn in the cube and projected onto the ball.
    """

    radius: Radius
    steps: int = Field(default=20, ge=1, description="the maximum number of steps per restart")
    step_size: float | None = Field(
        default=None, ge=0, description="None for 2.5 radius / steps, which reaches each face from any start"
    )
    restarts: int = Field(default=1, ge=1, description="the number of random starts; the worst result counts")
    loss: Literal["ce", "margin"] | Callable[..., Any] = Field(default="ce", description="what it maximises")
    draws: Draws = 1
    bpda: BPDA = DECLARED

    def numbers(self, shape: torch.Size) -> int:
        """One per start and value."""
        return self.restarts * prod(shape)

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        step_size = 2.5 * self.radius / self.steps if self.step_size is None else self.step_size
        starts = (2 * uniform.view(len(inputs), self.restarts, *inputs.shape[1:]) - 1) * self.radius
        logits = mean_prediction(model, inputs, self.draws)
        worst, closest = inputs.clone(), self.criterion.margin(logits, labels)
        # A random network that errs once may be right in the next pass.
        standing = ~(self.criterion.success(logits, labels) & (self.draws == 1))
        for start in starts.unbind(1):
            indices = standing.nonzero().squeeze(1)
            images = inputs[indices] + start[indices]
            for _ in range(self.steps + 1):  # one more evaluation than steps
                if not len(indices):
                    break
                images = project(images, inputs[indices], self.norm, self.radius)
                logits, gradient = input_gradient(
                    model, images, labels[indices], self._loss, draws=self.draws, bpda=self.bpda
                )
                margins = self.criterion.margin(logits, labels[indices])
                success = self.criterion.success(logits, labels[indices]) & (self.draws == 1)
                better = success | (margins > closest[indices])
                worst[indices[better]], closest[indices[better]] = images[better], margins[better]
                standing[indices] = ~success
                images = images + step_size * steepest(gradient, images, self.norm)
                indices, images = indices[~success], images[~success]
        return worst

    def blind(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Where the gradient of L is 0 or NaN at the input."""
        return without_gradient(model, inputs, labels, self._loss, draws=self.draws, bpda=self.bpda)

    @property
    def _loss(self) -> Loss:
        if callable(self.loss):
            return self.loss
        return self.criterion.margin if self.loss == margin.__name__ else self.criterion.loss


ATTACK = PGD
