"""Normalisation to a constant L2 norm: of inputs, of all layers' inputs, or of the embedding (Li et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tutelage.errors import TutelageError
from tutelage.models.attach import attach_before, find_classifier, get_layer, input_layer
from tutelage.models.outputs import at_least_float32
from tutelage.models.surgery import append_operation
from tutelage.text import value_text

Place = Literal["input", "feature", "all"]

_NAME = "unit_norm"
_TINY = 1e-12  # the lower bound of a norm, for inputs that are 0


class UnitNorm(nn.Module):
    """x sqrt(D) / ||x||_2 per sample, for inputs of D values: all lie on a sphere, with a root mean square of 1."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) to the same shape; 0 stays 0."""
        flat = inputs.flatten(1)
        unit: Tensor = F.normalize(at_least_float32(flat), dim=1, eps=_TINY) * math.sqrt(flat.shape[1])
        return unit.to(inputs.dtype).view_as(inputs)


class CosineClassifier(nn.Linear):
    """z_c = s cos(w_c, h), with unit-norm weights and features: bounded by the scale s."""

    def __init__(self, inputs: int, classes: int, scale: float) -> None:
        super().__init__(inputs, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C)."""
        cosines = F.linear(F.normalize(features, dim=1, eps=_TINY), F.normalize(self.weight, dim=1, eps=_TINY))
        return self.scale * cosines


def apply(network: nn.Module, example: Tensor, *, where: Place, scale: float = 16.0) -> nn.Module:
    """Normalise inputs to a constant norm.

    Args:
        network: it is changed. Its keys do not change, but ``feature`` removes the bias of the classifier.
        example: inputs as the network takes them, (B, ...).
        where: ``input``: the network's inputs (after its normalisation by mean and standard deviation), so that
            f(a x) = f(x) for a > 0; ``all``: these and the inputs of every linear and convolutional layer; ``feature``:
            the input of the classifier, which becomes a ``CosineClassifier``.
        scale: s of ``feature``.

    Raises:
        TutelageError: there is no such place, the scale is not above 0, or the network has no suitable layer.
    """
    if where not in get_args(Place):
        raise TutelageError(f"the place of the normalisation is {', '.join(get_args(Place))}, got {value_text(where)}")
    if not 0 < scale < float("inf"):
        raise TutelageError(f"the scale of cosines must be a finite number above 0, got {scale}")
    if where == "feature":
        layer = find_classifier(network, example)
        old = get_layer(network, layer, nn.Linear)
        classifier = CosineClassifier(old.in_features, old.out_features, scale).to(old.weight)
        classifier.weight.data.copy_(old.weight.data)
        network.set_submodule(layer, classifier.train(network.training))
    else:
        weighted = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | _ConvNd)]
        for name in dict.fromkeys([input_layer(network), *(weighted if where == "all" else [])]):
            attach_before(network, name, _NAME, UnitNorm())
    append_operation(network, "unit_norm", where=where, scale=scale)
    return network
