"""A network without its classifier, whose output is the embedding."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.roles import add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import append_operation


def apply(network: nn.Module, example: Tensor) -> nn.Module:
    """Replace the classifier by the identity: the output is what the classifier was given, under ``embedding``.

    Args:
        network: inputs to logits (B, classes), by an ``nn.Linear`` in the end; it is changed. Its other keys stay.
        example: inputs as the network takes them.

    Raises:
        TutelageError: it has no such classifier.
    """
    layer = find_classifier(network, example)
    get_layer(network, layer, nn.Linear)
    # Roles are found while the classifier is there: without it the last layer with weights would be taken for one.
    roles = {
        role: str(tap)
        for role, tap in find_roles(network, example, parse_roles(network, declared_roles(network))).items()
    }
    network.set_submodule(layer, nn.Identity())
    for role, place in (roles | {"embedding": ""}).items():
        add_role(network, role, place)
    append_operation(network, "headless")
    return network
