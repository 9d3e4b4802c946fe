"""Logits from outputs that cluster around the vertices of a simplex (Ali et al. 2020, arXiv 2010.15487)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.attach import attach_after, find_classifier
from tutelage.models.roles import add_role
from tutelage.models.surgery import append_operation

VERTICES = "vertices"
"""The role of the classifier's own outputs z, (B, classes)."""

_NAME = "decision"


class Decision(nn.Module):
    """Logits z / (scale T) for outputs z around the vertices scale e_i, with a temperature T.

    Attributes:
        temperature: T, (); 1 until ``set_temperature``.
    """

    temperature: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, classes) to the same shape."""
        return outputs / self.scale / self.temperature


def apply(network: nn.Module, example: Tensor, *, scale: float) -> nn.Module:
    """Return z / (scale T) as logits, with z the output of the classifier, which has the role ``vertices``.

    The largest logit belongs to the nearest vertex, since ||z - t_i||^2 = ||z||^2 + scale^2 - 2 scale z_i, and to the
    most likely of Gaussians with one covariance around the vertices. The softmax of z itself would saturate at 0 and 1,
    and that of z / scale is almost uniform: at the vertex the largest of ten probabilities is e / (e + 9) = 0.23.
    ``set_temperature`` calibrates it. The operation adds one value to the weights file, T, under ``decision`` of the
    classifier.

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


def set_temperature(network: nn.Module, temperature: float) -> None:
    """Set T of a network that ``apply`` changed; the predicted classes stay the same.

    Raises:
        TutelageError: the network was not changed by ``apply``, or T is not a finite number above 0.
    """
    if not 0 < temperature < float("inf"):
        raise TutelageError(f"a temperature must be a finite number above 0, got {temperature}")
    layers = [module for module in network.modules() if isinstance(module, Decision)]
    if not layers:
        raise TutelageError(f"{type(network).__name__} has no outputs around a simplex; train it with method=gccs")
    for layer in layers:
        layer.temperature.fill_(temperature)
