"""Networks of several architectures beside each other, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models import zoo
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import logits_of
from tutelage.models.surgery import applied_operations, declare_inputs, record_operations
from tutelage.text import value_text

_MAX_NETWORKS = 63


class Beside(nn.Module):
    """Networks that share nothing but their inputs, and the mean of their logits.

    Attributes:
        branches: the networks, each from inputs (B, ...) to logits (B, classes).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(networks)
        declare_inputs(self, self.branches)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...) to the mean of the networks' logits, (B, classes)."""
        return torch.stack([logits_of(network, network(inputs)) for network in self.branches]).mean(0)

    def release(self) -> nn.Module:
        """The first network."""
        return self.branches[0]


def apply(
    network: nn.Module, example: Tensor, *, networks: Sequence[str], others: Sequence[nn.Module] | None = None
) -> Beside:
    """Put built-in networks beside a network.

    Args:
        network: images (B, C, H, W) to logits (B, classes); it becomes the first of ``branches``.
        example: images as the network takes them, (B, C, H, W).
        networks: the names of the others, 1 to 63, as in ``models/zoo.py``.
        others: the others with their weights; by default they are built with new weights.

    Raises:
        TutelageError: the inputs are not images, there is no such network, or their number is invalid.
    """
    if isinstance(networks, str) or not 1 <= len(networks) <= _MAX_NETWORKS:
        raise TutelageError(
            f"1 to {_MAX_NETWORKS} networks can be put beside another, got {value_text(networks)}; give a list of names"
        )
    if example.ndim != 4 or not example.is_floating_point():
        raise TutelageError(
            f"built-in networks can be put beside a network for images, and its inputs have shape "
            f"{tuple(example.shape[1:])}; give a network for images (C, H, W)"
        )
    if others is None:
        with eval_mode(network), torch.no_grad():
            classes = logits_of(network, network(example)).shape[1]
        shape = tuple(example.shape[1:])
        others = [zoo.build(str(name), num_classes=classes, input_shape=shape).to(example.device) for name in networks]
    beside = Beside([network, *others])
    beside.train(network.training)
    operations = applied_operations(network)
    record_operations(beside, [*operations, {"operation": "beside", "networks": [str(name) for name in networks]}])
    return beside
