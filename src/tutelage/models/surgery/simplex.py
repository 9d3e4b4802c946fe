"""Outputs that lie around the vertices of a simplex, and logits made of them (Ali et al. 2020, arXiv 2010.15487)."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.attach import attach_after, find_classifier
from tutelage.models.roles import add_role
from tutelage.models.surgery import append_operation

VERTICES = "vertices"
"""The role of the classifier's own outputs z, (B, classes)."""

_NAME = "decision"


class Decision(nn.Module):
    """Outputs around the vertices scale e_i, as logits: z / scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, classes) to the same shape."""
        return outputs / self.scale


def apply(network: nn.Module, example: Tensor, *, scale: float) -> nn.Module:
    """Let the network give z / scale for logits, with z what its classifier gives, to be read by the role ``vertices``.

    The largest logit is that of the nearest vertex, ||z - t_i||^2 being ||z||^2 + scale^2 - 2 scale z_i, and of the
    likeliest of Gaussians with one covariance around the vertices. Softmax of z itself would be 0 and 1 to the last
    bit; of z / scale it can be used, by attacks, calibration and students. It has no weights.

    Args:
        network: images to (B, classes), by an ``nn.Linear`` in the end; it is changed.
        example: (B, C, H, W), images as it takes them.
        scale: the distance of a vertex from the origin, above 0.

    Raises:
        TutelageError: when it has no such classifier, or has been changed so already.
    """
    if not 0 < scale < float("inf"):
        raise TutelageError(f"the scale of the simplex must be a finite number above 0, got {scale}")
    layer = find_classifier(network, example)
    attach_after(network, layer, _NAME, Decision(scale))
    add_role(network, VERTICES, f"input:{layer}.{_NAME}")
    append_operation(network, "simplex", scale=scale)
    return network
