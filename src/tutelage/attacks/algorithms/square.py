"""The square attack: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, arXiv 1912.00049."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tutelage.attacks.attack import Attack, Radius
from tutelage.attacks.norms import Norm, project
from tutelage.models.outputs import at_least_float32

_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # the paper's schedule, as shares of the queries


class Square(Attack):
    """Random search in the maximum norm, which reads logits and no gradient: masked gradients do not mislead it.

    It starts from vertical stripes of +-radius. Each query sets a random square of the image to image +-radius, one
    sign per channel, and keeps it if the margin of the criterion grows. The square's area is ``share`` of the image,
    halved nine times over the queries. Inputs without two spatial axes are searched as one row.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    radius: Radius
    queries: int = Field(default=1000, ge=1, description="the number of forward passes per sample")
    share: float = Field(default=0.8, gt=0, le=1, description="the area of the first squares, as a share of the image")

    def numbers(self, shape: torch.Size) -> int:
        """The stripes' signs, then each square's place and signs."""
        channels, _, width = _as_image(shape)
        return channels * width + self.queries * (2 + channels)

    def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
        """See the class."""
        channels, height, width = _as_image(inputs.shape[1:])
        stripes, squares = torch.split(uniform, [channels * width, self.queries * (2 + channels)], dim=1)
        squares = squares.view(len(inputs), self.queries, 2 + channels)
        stripes = stripes.view(-1, channels, 1, width).expand(-1, channels, height, width).reshape(inputs.shape)
        logits = at_least_float32(model(inputs))
        best, margins = inputs.clone(), self.criterion.margin(logits, labels)
        indices = (~self.criterion.success(logits, labels)).nonzero().squeeze(1)
        margins[indices] = -math.inf  # the stripes always replace the image
        proposal = self._signed(inputs, stripes)[indices]
        rows, columns = torch.arange(height, device=inputs.device), torch.arange(width, device=inputs.device)
        for query in range(self.queries):
            if not len(indices):
                break
            logits = at_least_float32(model(proposal))
            reached = self.criterion.margin(logits, labels[indices])
            better = reached > margins[indices]
            best[indices[better]], margins[indices[better]] = proposal[better], reached[better]
            indices = indices[~self.criterion.success(logits, labels[indices])]
            place, signs = torch.split(squares[indices, query], [2, channels], dim=1)
            side = self._side(query, height * width)
            tall, wide = min(side, height), min(side, width)
            top, left = (place * torch.tensor([height - tall + 1, width - wide + 1]).to(place)).long().unbind(1)
            in_rows = (rows >= top[:, None]) & (rows < top[:, None] + tall)
            in_columns = (columns >= left[:, None]) & (columns < left[:, None] + wide)
            inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None].expand(-1, channels, -1, -1)
            signed = self._signed(
                inputs[indices], signs[:, :, None, None].expand(inside.shape).reshape(-1, *inputs.shape[1:])
            )
            proposal = torch.where(inside.reshape(signed.shape), signed, best[indices])
        return best

    def _signed(self, inputs: Tensor, uniform: Tensor) -> Tensor:
        """The inputs plus or minus the radius, by whether a random number is above a half."""
        return project(inputs + self.radius * (2 * (uniform > 0.5).to(inputs) - 1), inputs, self.norm, self.radius)

    def _side(self, query: int, area: int) -> int:
        """The side of the squares of a query."""
        halvings = sum(query > share * self.queries for share in _HALVINGS)
        return max(1, round(math.sqrt(self.share * 0.5**halvings * area)))


def _as_image(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, 1, math.prod(shape))


ATTACK = Square
