"""A network without its classifier, whose output is the embedding."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.attach import classifier_of, layer_of
from tutelage.models.roles import add_role, find_roles, named_roles, roles_of
from tutelage.models.surgery import record_surgery, surgery_of


def operate(network: nn.Module, example: Tensor) -> nn.Module:
    """Replace the classifier by the identity: the output is what the classifier was given, under ``embedding``.

    Args:
        network: inputs to logits (B, classes), by an ``nn.Linear`` in the end; it is changed. Its other keys stay.
        example: inputs as the network takes them.

    Raises:
        TutelageError: it has no such classifier.
    """
    layer = classifier_of(network, example)
    layer_of(network, layer, nn.Linear)
    # Roles are found while the classifier is there: without it the last layer with weights would be taken for one.
    roles = {
        role: str(tap) for role, tap in find_roles(network, example, named_roles(network, roles_of(network))).items()
    }
    network.set_submodule(layer, nn.Identity())
    for role, place in (roles | {"embedding": ""}).items():
        add_role(network, role, place)
    record_surgery(network, [*surgery_of(network), {"operation": "headless"}])
    return network
