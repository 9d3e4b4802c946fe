"""The worst of several attacks on each sample."""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tutelage.attacks.attack import Attack
from tutelage.attacks.norms import distance
from tutelage.errors import TutelageError
from tutelage.models.outputs import at_least_float32


class Worst(Attack):
    """Several attacks of one norm and one criterion: for each sample, the adversarial input nearest to it.

    An attack with a radius is not repeated on samples that an earlier one has broken. Text: ``pgd:0.03+square:0.03``.
    """

    attacks: tuple[Attack, ...] = Field(min_length=1, description="the attacks, in order")

    def __init__(self, attacks: tuple[Attack, ...] | list[Attack], **fields: Any) -> None:
        first = attacks[0] if attacks else None
        shared = {} if first is None else {"norm": first.norm, "criterion": first.criterion, "radius": first.radius}
        super().__init__(**{"attacks": tuple(attacks), **shared, **fields})

    @model_validator(mode="after")
    def _alike(self) -> Self:
        for attack in self.attacks:
            if (attack.norm, attack.criterion, attack.radius) != (self.norm, self.criterion, self.radius):
                raise TutelageError(
                    f"the worst of several attacks needs attacks of one norm, radius and criterion, got {self}; "
                    "name attacks of different ones separately"
                )
        return self

    @property
    def gradient_draws(self) -> int | None:
        """The smallest number of those that follow gradients."""
        return min((draws for attack in self.attacks if (draws := attack.gradient_draws) is not None), default=None)

    def numbers(self, shape: torch.Size) -> int:
        """Those of all attacks."""
        return sum(attack.numbers(shape) for attack in self.attacks)

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        worst, nearest = inputs.clone(), inputs.new_full((len(inputs),), float("inf"))
        counts = [attack.numbers(inputs.shape[1:]) for attack in self.attacks]
        parts = torch.split(uniform, counts, dim=1)
        for attack, numbers in zip(self.attacks, parts, strict=True):
            indices = (nearest.isinf() | (attack.radius is None)).nonzero().squeeze(1)
            if not len(indices):
                break
            attacked = attack.search(model, inputs[indices], labels[indices], numbers[indices])
            success = self.criterion.success(at_least_float32(model(attacked)), labels[indices])
            length = distance(inputs[indices], attacked, self.norm)
            better = success & (length < nearest[indices])
            worst[indices[better]], nearest[indices[better]] = attacked[better], length[better]
            failed = nearest[indices].isinf()
            worst[indices[failed]] = attacked[failed]
        return worst

    def blind(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Where all of the attacks are blind."""
        return torch.stack([attack.blind(model, inputs, labels) for attack in self.attacks]).all(0)

    def __str__(self) -> str:
        """The texts of the attacks, joined by +."""
        return "+".join(map(str, self.attacks))
