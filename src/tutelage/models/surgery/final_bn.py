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
    """Let the network's logits be z' = gamma (z - mu) / sqrt(var + eps) + beta, with z what its classifier gives.

    Mean and variance are those of the batch in train mode, per class, and running ones in eval mode. The network's own
    keys stay what they are; those of the layer lie under ``final_bn`` of the classifier.

    Args:
        network: images to logits, by an ``nn.Linear`` in the end; it is changed.
        example: (B, C, H, W), images as it takes them.
        position: "logits", or "penultimate": the same of the features that the classifier is given.
        momentum: the weight of a batch in the running statistics, in (0, 1].
        affine: 1 for gamma and beta that learn, 0 for 1 and 0.

    Raises:
        TutelageError: when it has no such classifier, or such a layer already.
    """
    if position not in POSITIONS:
        raise unknown("position of the final batch normalisation", position, POSITIONS)
    if not 0 < momentum <= 1:
        raise TutelageError(
            f"the momentum of the final batch normalisation lies in (0, 1], got {momentum}; 0.1 is usual"
        )
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    width = classifier.out_features if position == "logits" else classifier.in_features
    norm = nn.BatchNorm1d(width, momentum=momentum, affine=bool(affine), dtype=classifier.weight.dtype)
    POSITIONS[position](network, layer, _NAME, norm)
    append_operation(network, _NAME, position=position, momentum=momentum, affine=int(affine))
    return network


def remove(network: nn.Module) -> nn.BatchNorm1d:
    """Take the layer from the network, which is then as it was before ``apply``, but for what it has learnt since.

    That is another function: ``fold`` keeps it. Gives the layer.
    """
    layer, _ = _where(network)
    norm = get_layer(network, f"{layer}.{_NAME}", nn.BatchNorm1d)
    detach(network, layer, _NAME)
    record_operations(network, [each for each in applied_operations(network) if each["operation"] != _NAME])
    return norm


@torch.no_grad()
def fold(network: nn.Module) -> nn.Module:
    """A copy without the layer that gives the same logits in eval mode: z' = a z + c goes into the classifier.

    "logits": W' = diag(a) W, b' = a b + c. "penultimate": W' = W diag(a), b' = b + W c. With
    a = gamma / sqrt(var + eps) and c = beta - a mu of the running statistics. A classifier without a bias gets one.
    """
    plain = copy.deepcopy(network)
    layer, position = _where(plain)
    norm, classifier = remove(plain).double().eval(), get_layer(plain, layer, nn.Linear)
    weight = classifier.weight.double()
    c = norm(weight.new_zeros(1, norm.num_features))[0]
    a = norm(weight.new_ones(1, norm.num_features))[0] - c
    bias = classifier.bias.double() if classifier.bias is not None else weight.new_zeros(len(weight))
    folded = (a[:, None] * weight, a * bias + c) if position == "logits" else (weight * a, bias + weight @ c)
    classifier.weight.copy_(folded[0])
    classifier.bias = nn.Parameter(folded[1].to(classifier.weight.dtype))
    return plain


def _where(network: nn.Module) -> tuple[str, str]:
    """The name of the layer that it is at, and its position."""
    layers = [name.removesuffix(f".{_NAME}") for name, _ in network.named_modules() if name.endswith(f".{_NAME}")]
    done = [done for done in applied_operations(network) if done["operation"] == _NAME]
    if len(layers) != 1 or len(done) != 1:
        raise TutelageError(
            f"{type(network).__name__} has no final batch normalisation; give it one by method=final_bn"
        )
    return layers[0], str(done[0]["position"])
