"""Logits of classes from one output for each node of a hierarchy (Brust et al. 2020, arXiv 2010.06469)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.hierarchy import Hierarchy
from tutelage.errors import TutelageError
from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.roles import add_role, declared_roles, find_roles, parse_roles
from tutelage.models.surgery import append_operation
from tutelage.terms.precision import full_precision

NODES = "nodes"
"""The role of the logits of all nodes, (B, n)."""


@full_precision
def leaf_log_probabilities(logits: Tensor, hierarchy: Hierarchy) -> Tensor:
    """log P(class) of each class, (B, C), from the conditional probabilities of all nodes.

        P(v) = sigmoid(z_v) (1 - prod over parents p of v of (1 - P(p))),   P(root) = sigmoid(z_root)

    With one parent this is sigmoid(z_v) P(p). The probabilities do not sum to 1; the softmax of the result does.

    Args:
        logits: z, (B, n).
        hierarchy: of n nodes.
    """
    own = F.logsigmoid(logits).unbind(1)
    log: dict[int, Tensor] = {}
    for node in hierarchy.order:
        above = [log[parent] for parent in hierarchy.parents[node]]
        if len(above) > 1:
            log[node] = own[node] + _log_complement(torch.stack([_log_complement(value) for value in above]).sum(0))
        else:
            log[node] = own[node] + above[0] if above else own[node]
    return torch.stack([log[node] for node in range(hierarchy.classes)], 1)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p) from log p, p in (0, 1)."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))


class LeafRule(nn.Module):
    """``leaf_log_probabilities`` as the last layer of a network."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        self.hierarchy = hierarchy

    def forward(self, logits: Tensor) -> Tensor:
        """(B, n) to (B, C)."""
        return leaf_log_probabilities(logits, self.hierarchy)


def apply(network: nn.Module, example: Tensor, *, edges: list[int]) -> nn.Module:
    """Replace the classifier by one logit for each node, and return log-probabilities of the classes.

    The new layer is zero at first, so that all conditional probabilities are 1/2. The node logits have the role
    ``nodes``; the inputs of the layer keep the role ``embedding``.

    Args:
        network: inputs to logits, with an ``nn.Linear`` as its last layer, which is removed; it is changed. Its other
            keys do not change.
        example: inputs as the network takes them, (B, ...).
        edges: child and parent of each edge in turn; the first nodes are the classes.

    Raises:
        TutelageError: the network has no such classifier, or the edges are no hierarchy of its classes.
    """
    layer = find_classifier(network, example)
    classifier = get_layer(network, layer, nn.Linear)
    hierarchy = _hierarchy(edges, classifier.out_features)
    nodes = nn.Linear(classifier.in_features, len(hierarchy), dtype=classifier.weight.dtype)
    nn.init.zeros_(nodes.weight)
    nn.init.zeros_(nodes.bias)
    # Find roles before the classifier is removed: otherwise the last layer with weights would count as the classifier.
    roles = find_roles(network, example, parse_roles(network, declared_roles(network)))
    head = nn.Sequential(OrderedDict(nodes=nodes, classes=LeafRule(hierarchy)))
    network.set_submodule(layer, head.to(classifier.weight.device).train(network.training))
    for role, tap in roles.items():
        add_role(network, role, str(tap))
    add_role(network, "embedding", f"input:{layer}.nodes")
    add_role(network, NODES, f"{layer}.nodes")
    append_operation(network, "nodes", edges=hierarchy.edges)
    return network


def hierarchy_of(network: nn.Module) -> Hierarchy:
    """The hierarchy of a network that ``apply`` changed.

    Raises:
        TutelageError: it was not.
    """
    rules = [module for module in network.modules() if isinstance(module, LeafRule)]
    if not rules:
        raise TutelageError(f"{type(network).__name__} has no hierarchy; train it with method=chillax")
    return rules[0].hierarchy


def _hierarchy(edges: list[int], classes: int) -> Hierarchy:
    count = max([classes, *edges]) + 1 if edges else 0
    if len(edges) % 2 or not all(isinstance(node, int) and node >= 0 for node in edges) or count > len(edges) + 2:
        raise TutelageError("the edges of a hierarchy are pairs of child and parent, counted from 0; they are not")
    parents: list[tuple[int, ...]] = [()] * count
    for child, parent in zip(edges[::2], edges[1::2], strict=True):
        parents[child] += (parent,)
    return Hierarchy(classes, tuple(parents))
