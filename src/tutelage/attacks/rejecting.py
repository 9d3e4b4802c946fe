"""A network that rejects inputs, as a network with one more class, so that attacks know of the rejection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.models.outputs import at_least_float32


class Rejecting(nn.Module):
    """A network's scores (B, C) and, as the last class, the threshold below which it rejects an input: (B, C + 1).

    Its decision is "rejected" where all scores are below the threshold. Attack it with the criterion ``Accepted()``.

    Args:
        network: inputs to scores that are comparable between inputs, such as log-densities.
        threshold: a number, or () in a network's buffer.
    """

    def __init__(self, network: nn.Module, threshold: float | Tensor) -> None:
        super().__init__()
        self.network, self.threshold = network, float(threshold)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) to (B, C + 1)."""
        scores = at_least_float32(self.network(inputs))
        return torch.cat([scores, scores.new_full((len(scores), 1), self.threshold)], 1)
