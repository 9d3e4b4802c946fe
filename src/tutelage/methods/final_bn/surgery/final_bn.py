"""Batch normalisation as a network's last layer (Kocaman, Shir, Baeck 2020, arXiv 2011.06319)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.attach import attach_after, attach_before, detach, find_classifier, get_layer
from tutelage.models.surgery import append_operation, applied_operations, record_operations

_NAME = "final_bn"
POSITIONS = {"logits": attach_after, "penultimate": attach_before}


def apply(
    network: nn.Module, example: Tensor, *, position: str = "logits", momentum: float = 0.1, affine: int = 1
) -> nn.Module:
    """Replace the classifier's output z by z' = gamma (z - mu) / sqrt(var + eps) + beta.

    The mean mu and variance var are per class, of the batch in train mode and running statistics in eval mode. The
    network's own keys do not change; the keys of the layer are under ``final_bn`` of the classifier.

    Args:
        network: inputs to logits, with an ``nn.Linear`` as its last layer; it is changed.
        example: inputs as the network takes them, (B, ...).
        position: "logits", or "penultimate" to normalise the input of the classifier instead.
        momentum: the weight of a batch in the running statistics, in (0, 1].
        affine: 1 for trainable gamma and beta, 0 for gamma = 1 and beta = 0.

    Raises:
        TutelageError: the network has no such classifier, or has such a layer already.
    """
    if position not in POSITIONS:
        raise unknown("position of the final batch normalisation", position, POSITIONS)
    if not 0 < momentum <= 1:
        raise TutelageError(
            f"the momentum of the final batch normalisation must be in (0, 1], got {momentum}; the default is 0.1"
        )
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    width = classifier.out_features if position == "logits" else classifier.in_features
    norm = nn.BatchNorm1d(width, momentum=momentum, affine=bool(affine), dtype=classifier.weight.dtype)
    POSITIONS[position](network, layer, _NAME, norm)
    append_operation(network, _NAME, position=position, momentum=momentum, affine=int(affine))
    return network


def remove(network: nn.Module) -> nn.BatchNorm1d:
    """Remove the layer from the network and return it.

    The network then computes another function; ``fold`` preserves the function.
    """
    layer, _ = _location(network)
    norm = get_layer(network, f"{layer}.{_NAME}", nn.BatchNorm1d)
    detach(network, layer, _NAME)
    record_operations(network, [op for op in applied_operations(network) if op["operation"] != _NAME])
    return norm


@torch.no_grad()
def fold(network: nn.Module) -> nn.Module:
    """A copy without the layer and with the same logits in eval mode: z' = a z + c is folded into the classifier.

    "logits": W' = diag(a) W, b' = a b + c. "penultimate": W' = W diag(a), b' = b + W c. Here
    a = gamma / sqrt(var + eps) and c = beta - a mu, with running statistics. A classifier without a bias gets one.
    """
    plain = copy.deepcopy(network)
    layer, position = _location(plain)
    norm, classifier = remove(plain).double().eval(), get_layer(plain, layer, nn.Linear)
    weight = classifier.weight.double()
    c = norm(weight.new_zeros(1, norm.num_features))[0]
    a = norm(weight.new_ones(1, norm.num_features))[0] - c
    bias = classifier.bias.double() if classifier.bias is not None else weight.new_zeros(len(weight))
    folded = (a[:, None] * weight, a * bias + c) if position == "logits" else (weight * a, bias + weight @ c)
    classifier.weight.copy_(folded[0])
    classifier.bias = nn.Parameter(folded[1].to(classifier.weight.dtype))
    return plain


def _location(network: nn.Module) -> tuple[str, str]:
    """The name of the classifier, and the layer's position."""
    layers = [name.removesuffix(f".{_NAME}") for name, _ in network.named_modules() if name.endswith(f".{_NAME}")]
    operations = [op for op in applied_operations(network) if op["operation"] == _NAME]
    if len(layers) != 1 or len(operations) != 1:
        raise TutelageError(f"{type(network).__name__} has no final batch normalisation; train it with method=final_bn")
    return layers[0], str(operations[0]["position"])
