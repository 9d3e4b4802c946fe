"""An additional output for abstention: Deep Gamblers (Liu et al. 2019, arXiv 1907.00208)."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.attach import attach_parallel, find_classifier, get_layer
from tutelage.models.roles import add_role
from tutelage.models.surgery import append_operation

ABSTAIN = "abstain"
"""The role of the abstention logit, (B, 1)."""


def apply(network: nn.Module, example: Tensor) -> nn.Module:
    """Add an abstention logit to a network of m classes, with the role ``abstain``.

    It is a separate linear layer on the input of the classifier, which computes the same function as a classifier with
    one more row. The network's output remains the m logits, and its keys do not change. The new layer is initialised
    like any ``nn.Linear``, from torch's global generator.

    Args:
        network: inputs to logits (B, m), with an ``nn.Linear`` as its last layer; it is changed.
        example: inputs as the network takes them, (B, ...).

    Raises:
        TutelageError: the network has no such classifier, or has an abstention logit already.
    """
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    attach_parallel(network, layer, ABSTAIN, nn.Linear(classifier.in_features, 1, dtype=classifier.weight.dtype))
    add_role(network, ABSTAIN, f"{layer}.{ABSTAIN}")
    append_operation(network, "abstain")
    return network
