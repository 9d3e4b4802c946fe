"""The delayed elastic-net attack (DEN): Cancela, Bolon-Canedo, Alonso-Betanzos, ICPR 2020."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.attacks.attack import BPDA, Attack, Draws
from tutelage.attacks.gradients import input_gradient, without_gradient
from tutelage.attacks.norms import Norm, distance
from tutelage.attacks.surrogates import DECLARED

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8  # of the averages of the gradient and its square
_FASTER = ((2000, 5.0), (3500, 25.0))  # after so many iterations, the step size is so many times as large


class DEN(Attack):
    """Search for the nearest adversarial image without a search for a trade-off constant.

    From X = x, per iteration k and sample, with d = X - x:

        G <- dg/dX,  plus, while X is adversarial, l2 d + l1 sign(d)      (the delayed elastic net)
        v <- 0.9 v + 0.1 G,   s <- 0.999 s + 0.001 G^2,   X <- clip(X - a_k v / (sqrt(s) + 1e-8))

    g is the criterion's ``shortfall``: for ``Misclassified(top=n)`` the sum of max(0, p_y - p_i) over the n most
    probable other classes, which is 0 once the attack has succeeded. X therefore walks to any adversarial point, and
    then hovers at the boundary and shrinks. After the first success, a value whose change is 0 or changes its sign is
    reset to x for good, which makes the change sparse. a_k is ``step_size``, 5 and 25
    times as large after 2,000 and 3,500 iterations. A sample ends ``extra`` iterations after its first success, or
    after ``steps``. The result is the adversarial point nearest in ``norm``.

    It is deterministic. With ``objective="probabilities"``, as in the paper, a saturated softmax has no gradient and
    the attack does not start; ``"logits"`` replaces p by the logits.

    Evidence: the text of the paper was not available; this follows the authors' code (braisCB/adversarial_attack).
    The delay is the abstract's rule; their code for ``Misclassified`` keeps the penalty on after the first success
    (``delay="until_first_success"``).

    Deviations: X is in [0, 1] for every network, not in its normalised inputs, so that settings and distances do not
    depend on the preprocessing. The defaults are those of their CIFAR-10 networks, whose inputs have the same range
    (for ImageNet: step_size 1e-4, l1 and l2 1e-4, extra 250). The most probable other classes are those of the current
    point, not of the one before. There is a limit of ``steps``, which their code lacks. All measures are of one point.
    """

    norm: Norm = Field(default="l2", description="the norm in which the nearest point is chosen: linf, l2 or l1")
    step_size: float = Field(default=1e-3, gt=0, description="a, in the pixels' range")
    l1: float = Field(default=1e-2, ge=0, description="the weight of the L1 part of the elastic net")
    l2: float = Field(default=1e-2, ge=0, description="the weight of the L2 part of the elastic net")
    extra: int = Field(default=1000, ge=1, description="iterations after the first success")
    steps: int = Field(default=5000, ge=1, description="the maximum number of iterations")
    objective: Literal["probabilities", "logits"] = Field(default="probabilities", description="the outputs in g")
    delay: Literal["while_successful", "until_first_success"] = Field(
        default="while_successful", description="when the elastic net acts"
    )
    draws: Draws = 1
    bpda: BPDA = DECLARED

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        best, nearest = inputs.clone(), inputs.new_full((len(inputs),), float("inf"))
        indices, images = torch.arange(len(inputs), device=inputs.device), inputs.clone()
        first, second = torch.zeros_like(inputs), torch.zeros_like(inputs)
        age = torch.zeros_like(labels)  # iterations since the first success
        for step in range(1, self.steps + 2):  # one more evaluation than steps
            centre = inputs[indices]
            logits, gradient = input_gradient(
                model, images, labels[indices], self._shortfall, draws=self.draws, bpda=self.bpda
            )
            success = self.criterion.success(logits, labels[indices])
            length = distance(centre, images, self.norm)
            better = success & (length < nearest[indices])
            best[indices[better]], nearest[indices[better]] = images[better], length[better]
            active = (age < self.extra) & ~(success & (step == 1))
            started = success | (age > 0)
            age = age + started
            offset, per_sample = images - centre, (-1, *[1] * (images.ndim - 1))
            pulled = (success if self.delay == "while_successful" else started).view(per_sample)
            gradient = gradient + pulled * (self.l2 * offset + self.l1 * offset.sign())
            first = _FIRST * first + (1 - _FIRST) * gradient
            second = _SECOND * second + (1 - _SECOND) * gradient.square()
            size = self.step_size * next((factor for after, factor in reversed(_FASTER) if step > after), 1.0)
            moved = (images - size * first / (second.sqrt() + _EPSILON)).clamp(0, 1)
            reset = started.view(per_sample) & ((moved - centre).sign() * offset.sign() <= 0)
            images = centre.where(reset, moved)
            active = active & (first != 0).flatten(1).any(1)  # without any gradient it will never move
            indices, images, age, first, second = (part[active] for part in (indices, images, age, first, second))
            if not len(indices):
                break
        return best

    def blind(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Where the gradient of g is 0 or NaN at the input, unless it is adversarial already."""
        return without_gradient(model, inputs, labels, self._shortfall, draws=self.draws, bpda=self.bpda)

    def _shortfall(self, logits: Tensor, labels: Tensor) -> Tensor:
        outputs = logits.softmax(1) if self.objective == "probabilities" else logits
        return self.criterion.shortfall(outputs, labels)


ATTACK = DEN
