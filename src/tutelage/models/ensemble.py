"""Several networks that answer as one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tutelage.models.outputs import Outputs


class Ensemble(nn.Module):
    """The logarithm of the mean of its members' class probabilities, (B, classes), as logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) pixels in [0, 1] to (B, classes)."""
        return Outputs.ensemble(tuple(Outputs(member(inputs)) for member in self.members))["logits"]
