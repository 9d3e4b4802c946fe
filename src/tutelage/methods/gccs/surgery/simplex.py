"""Logits from outputs that cluster around the vertices of a simplex (Ali et al. 2020, arXiv 2010.15487)."""

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
    """Logits z / scale for outputs z around the vertices scale e_i."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, classes) to the same shape."""
        return outputs / self.scale


def apply(network: nn.Module, example: Tensor, *, scale: float) -> nn.Module:
    """Return z / scale as logits, with z the output of the classifier, which has the role ``vertices``.

    The largest logit belongs to the nearest vertex, since ||z - t_i||^2 = ||z||^2 + scale^2 - 2 scale z_i, and to the
    most likely of Gaussians with one covariance around the vertices. The softmax of z itself would saturate at 0 and 1;
    that of z / scale is usable for attacks, calibration and students. The operation adds no weights.

    Args:
        network: inputs to (B, classes), with an ``nn.Linear`` as its last layer; it is changed.
        example: inputs as the network takes them, (B, ...).
        scale: the distance of a vertex from the origin, above 0.

    Raises:
        TutelageError: the network has no such classifier, or this operation was applied before.
    """
    if not 0 < scale < float("inf"):
        raise TutelageError(f"the scale of the simplex must be a finite number above 0, got {scale}")
    layer = find_classifier(network, example)
    attach_after(network, layer, _NAME, Decision(scale))
    add_role(network, VERTICES, f"input:{layer}.{_NAME}")
    append_operation(network, "simplex", scale=scale)
    return network
