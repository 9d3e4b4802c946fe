"""Joining networks: one linear classifier on their concatenated embeddings (Georgescu, Ionescu 2020)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.attach import find_classifier, get_layer
from tutelage.models.outputs import at_least_float32, first_tensor
from tutelage.models.surgery import applied_operations, declare_inputs, record_operations


class Joined(nn.Module):
    """A linear classifier on [f_1 / ||f_1||; ...; f_K / ||f_K||], the embeddings of K networks for the same inputs.

    Attributes:
        members: the networks, each without its own classifier: inputs to embeddings (B, D_k).
        classifier: (B, D_1 + ... + D_K) to logits (B, classes).
    """

    def __init__(self, members: Sequence[nn.Module], widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        declare_inputs(self, self.members)
        self.classifier = nn.Linear(sum(widths), classes)

    def embeddings(self, inputs: Tensor) -> list[Tensor]:
        """Each member's embeddings, normalised to length 1, (B, D_k)."""
        return [
            nn.functional.normalize(at_least_float32(_vectors(member(inputs))), eps=1e-6) for member in self.members
        ]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...) to logits (B, classes)."""
        logits: Tensor = self.classifier(torch.cat(self.embeddings(inputs), 1))
        return logits


def apply(
    network: nn.Module, example: Tensor, *, members: int = 2, others: Sequence[nn.Module] | None = None
) -> Joined:
    """Join networks of one architecture, whose classifiers are removed. An embedding is the input of a classifier.

    Args:
        network: inputs to logits (B, classes), with an ``nn.Linear`` as its last layer. It becomes the first member,
            and loses its classifier.
        example: inputs as the network takes them, (B, ...).
        members: their number, 2 to 64.
        others: networks of the same architecture with other weights, for the other members, which lose their
            classifiers; copies by default.

    Raises:
        TutelageError: a network has no such classifier, or the number of members is invalid.
    """
    if not 2 <= members <= 64 or (others is not None and len(others) != members - 1):
        raise TutelageError(f"2 to 64 networks can be joined, got {members if others is None else len(others) + 1}")
    networks = [network, *([copy.deepcopy(network) for _ in range(members - 1)] if others is None else others)]
    layers = [find_classifier(member, example) for member in networks]
    linear = [get_layer(member, layer, nn.Linear) for member, layer in zip(networks, layers, strict=True)]
    operations = applied_operations(network)
    for member, layer in zip(networks, layers, strict=True):
        member.set_submodule(layer, nn.Identity())
    joined = Joined(networks, [layer.in_features for layer in linear], linear[0].out_features)
    joined.classifier.to(at_least_float32(linear[0].weight))
    joined.train(network.training)
    record_operations(joined, [*operations, {"operation": "join", "members": members}])
    return joined


def _vectors(output: object) -> Tensor:
    vectors = first_tensor(output)
    if vectors is None:
        raise TypeError(f"a member of a joined network returned a {type(output).__name__} and no embedding")
    return vectors
