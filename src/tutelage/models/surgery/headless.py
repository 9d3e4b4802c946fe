"""Removing a network's classifier, so that its output is the embedding."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.roles import add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import append_operation


def apply(network: nn.Module, example: Tensor) -> nn.Module:
    """Replace the classifier by the identity; the network's output then has the role ``embedding``.

    Args:
        network: inputs to logits (B, classes), with an ``nn.Linear`` as its last layer; it is changed. Its other keys
            do not change.
        example: inputs as the network takes them, (B, ...).

    Raises:
        TutelageError: the network has no such classifier.
    """
    layer = find_classifier(network, example)
    get_layer(network, layer, nn.Linear)
    # Find roles before the classifier is removed: otherwise the last layer with weights would count as the classifier.
    roles = {
        role: str(tap)
        for role, tap in find_roles(network, example, parse_roles(network, declared_roles(network))).items()
    }
    network.set_submodule(layer, nn.Identity())
    for role, layer in (roles | {"embedding": ""}).items():
        add_role(network, role, layer)
    append_operation(network, "headless")
    return network
