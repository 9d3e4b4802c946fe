"""Class scores from the distances to stored exemplars, in place of a linear classifier (Specht 1990)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.pnn.scores import parzen_log_scores
from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.roles import add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import append_operation


class ParzenHead(nn.Module):
    """``parzen_log_scores`` as the last layer of a network: its logits are log S_c, whose softmax is S_c / sum S.

    The confidence of the network is S_c itself, which is not divided by the sum over classes: it is small where no
    exemplar is near.

    Attributes:
        exemplars: (C, K, D).
        present: (C, K) bool, which of them count.
        sigma: the bandwidth, ().
        threshold: the logarithm of the score below which an input is rejected, ().
    """

    exemplars: Tensor
    present: Tensor
    sigma: Tensor
    threshold: Tensor

    def __init__(self, classes: int, count: int, size: int) -> None:
        super().__init__()
        self.register_buffer("exemplars", torch.zeros(classes, count, size))
        self.register_buffer("present", torch.ones(classes, count, dtype=torch.bool))
        self.register_buffer("sigma", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) to log S, (B, C)."""
        return parzen_log_scores(embedding, self.exemplars, self.present, self.sigma)


def apply(network: nn.Module, example: Tensor, *, per_class: int) -> nn.Module:
    """Replace the classifier by a ``ParzenHead``; its inputs keep the role ``embedding``.

    The exemplars are 0 until they are set, and are saved with the network.

    Args:
        network: inputs to logits, with an ``nn.Linear`` as its last layer, which is removed; it is changed. Its other
            keys do not change.
        example: inputs as the network takes them, (B, ...).
        per_class: K, the number of exemplars of each class.

    Raises:
        TutelageError: the network has no such classifier, or the number is not 1 or more.
    """
    if not per_class >= 1:
        raise TutelageError(f"a class needs 1 exemplar or more, got {per_class}")
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    # Find roles before the classifier is removed: otherwise the last layer with weights would count as the classifier.
    roles = find_roles(network, example, parse_roles(network, declared_roles(network)))
    head = ParzenHead(classifier.out_features, per_class, classifier.in_features)
    network.set_submodule(layer, head.to(classifier.weight.device).train(network.training))
    for role, tap in roles.items():
        add_role(network, role, str(tap))
    add_role(network, "embedding", f"input:{layer}")
    append_operation(network, "pnn", per_class=per_class)
    return network


def head_of(network: nn.Module) -> ParzenHead:
    """The head of a network that ``apply`` changed.

    Raises:
        TutelageError: it was not.
    """
    heads = [module for module in network.modules() if isinstance(module, ParzenHead)]
    if not heads:
        raise TutelageError(f"{type(network).__name__} has no exemplars; train it with method=pnn")
    return heads[0]
