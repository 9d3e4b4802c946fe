"""An ensemble of networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tutelage.models.outputs import Outputs


class Ensemble(nn.Module):
    """A network whose logits are the logarithm of its members' mean class probabilities, (B, classes)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...), for images pixels (B, C, H, W) in [0, 1], to logits (B, classes)."""
        return Outputs.ensemble(tuple(Outputs(member(inputs)) for member in self.members))["logits"]
