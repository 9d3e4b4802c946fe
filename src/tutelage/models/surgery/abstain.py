"""An output that says "I do not answer" beside the classifier: Deep Gamblers (Liu et al. 2019, arXiv 1907.00208)."""

from __future__ import annotations

from torch import Tensor, nn

from tutelage.models.attach import attach_parallel, find_classifier, get_layer
from tutelage.models.roles import add_role
from tutelage.models.surgery import append_operation

ABSTAIN = "abstain"
"""The role of the logit of not answering, (B, 1)."""


def apply(network: nn.Module, example: Tensor) -> nn.Module:
    """Give a network of m classes an (m+1)-th output, read by the role ``abstain``.

    It is a linear layer of its own on what the classifier is given, which is the same function as a classifier with one
    row more. The network's own logits stay those of the m classes, and its own keys stay too. The new row is drawn from
    torch's global generator, as ``nn.Linear`` draws those of a classifier.

    Args:
        network: images to logits (B, m), by an ``nn.Linear`` in the end; it is changed.
        example: (B, C, H, W), images as it takes them.

    Raises:
        TutelageError: when it has no such classifier, or abstains already.
    """
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    attach_parallel(network, layer, ABSTAIN, nn.Linear(classifier.in_features, 1, dtype=classifier.weight.dtype))
    add_role(network, ABSTAIN, f"{layer}.{ABSTAIN}")
    append_operation(network, "abstain")
    return network
