"""Norm Loss on the weights of a network: Georgiou, Schmitt, Baeck, Chen, Lew 2020, arXiv 2103.06583."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tutelage.config import Recipe
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term
from tutelage.training.optim import make_optimizer

MIN_NORM = 1e-3  # the lower bound of a norm in the quotient of the decoupled form, which would explode below it


def regularized_layers(network: nn.Module) -> dict[str, nn.Module]:
    """By the name of the weight, the convolutions and linear layers whose weight is trained; each weight once.

    A weight that is computed from other parameters (``torch.nn.utils.parametrizations``: weight normalization, for
    example) is not a parameter and is left out.

    Raises:
        TutelageError: there is none.
    """
    trained = {p: name for name, p in network.named_parameters() if p.requires_grad}
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | _ConvNd)]
    weights = ((layer._parameters.get("weight"), layer) for layer in layers)
    by_weight = {weight: layer for weight, layer in weights if weight is not None and weight in trained}
    if not by_weight:
        raise TutelageError(
            f"{type(network).__name__} has no convolution or linear layer whose weight is a trained parameter; "
            "Norm Loss has nothing to act on, so use another method"
        )
    return {trained[weight]: layer for weight, layer in by_weight.items()}


def unit_weights(layer: nn.Module) -> Tensor:
    """A view of the layer's weight, (G, U, ...), with the weights of G x U output units along the other axes.

    Args:
        layer: linear, a convolution or a transposed convolution; G is 1 except for the groups of the last.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs / groups, ...), with the inputs of one group together
        grouped = weight.view(layer.groups, len(weight) // layer.groups, *weight.shape[1:])
        return grouped.transpose(1, 2)
    return weight.unsqueeze(0)


@full_precision
def unit_norms(weights: Tensor) -> Tensor:
    """||w_o||_2 of each output unit: (G, U, ...) weights as in ``unit_weights`` to (G, U, 1, ...)."""
    norms: Tensor = torch.linalg.vector_norm(weights, dim=tuple(range(2, weights.ndim)), keepdim=True)
    return norms


def norm_loss(*weights: Tensor) -> Tensor:
    """L_nl, the sum over layers and output units o of (1 - ||w_o||_2)^2.

    Its gradient is 2 (1 - 1 / ||w_o||) w_o: weight decay with a coefficient of its own for each unit, negative for
    norms below 1. It is 0 at w_o = 0, so that such a unit stays there. It is a sum, not a mean.

    Args:
        weights: of each layer, (G, U, ...) as in ``unit_weights``.

    Returns:
        (), in squared units of the weights.
    """
    return torch.stack([(1 - unit_norms(weight)).square().sum() for weight in weights]).sum()


class NormLoss(Term):
    """``norm_loss`` of a network's layers: one value (), whatever the batch.

    Args:
        layers: from ``regularized_layers``. They stay those of the network and do not become part of the term.
    """

    reads_labels = False
    roles = ()

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._layers = [*layers.values()]

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(), in squared units of the weights."""
        return norm_loss(*map(unit_weights, self._layers))


@torch.no_grad()
def pull(layer: nn.Module, rate: float | Tensor) -> None:
    """w_o <- w_o (1 - 2 rate (1 - 1 / ||w_o||)) for each unit, with ||w_o|| at least 1e-3 in the quotient."""
    weights = unit_weights(layer)
    weights.mul_(1 - 2 * rate * (1 - 1 / unit_norms(weights).clamp(min=MIN_NORM)))


def decoupled(
    recipe: Recipe, layers: Mapping[str, nn.Module], weight: float
) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """A factory for the recipe's optimizer that calls ``pull`` before each step, with rate = learning rate x weight.

    The gradient of the Norm Loss is then in none of the optimizer's averages, as the decay of AdamW.

    Args:
        recipe: the optimizer and its settings.
        layers: from ``regularized_layers``.
        weight: lambda.
    """

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = make_optimizer(recipe, parameters)

        def pull_all(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                members = set(group["params"])
                for layer in layers.values():
                    if layer.weight in members:
                        pull(layer, group["lr"] * weight)

        optimizer.register_step_pre_hook(pull_all)
        return optimizer

    return make
