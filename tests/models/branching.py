"""Networks to branch, and the logits of their branches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.token_network import TokenNetwork
from tutelage.models.load import make_model
from tutelage.models.surgery.branch import Branched

EXAMPLE = torch.zeros(2, 1, 8, 8)


class Overwriting(nn.Module):
    """An in-place ReLU shared by all layers, a layer that runs twice, and an in-place sum on the trunk's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.twice(x) + self.twice(0.5 * x)
        x = self.bn2(x)
        x += 1
        x = self.relu(x)
        x = self.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """A shared layer that returns a tuple, whose first tensor is later overwritten in place."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(x)
        first += second
        return self.fc(first.mean((2, 3)))  # type: ignore[no-any-return]


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.conv(x).chunk(2, 1)
        return first.clone(), second


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(inplace=True)),
        nn.Flatten(),
        nn.Linear(36, 4),
    )


def zoo_network(name: str) -> Callable[[], nn.Module]:
    return lambda: make_model(name, num_classes=4, input_shape=(1, 8, 8)).module


# The network, the last shared layer, and the prefixes of shared parameters.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "tokens": (TokenNetwork, "blocks.1", ("patches.", "blocks.0.", "blocks.1.", "token")),
    "overwriting": (Overwriting, "bn2", ("conv1.", "bn1.", "twice.", "bn2.")),
    "a tuple": (Pair, "both", ("both.",)),
    "sequential": (sequential, "0", ("0.",)),
    "resnet": (zoo_network("resnet8x0.25"), "layer2", ("conv1.", "bn1.", "layer1.", "layer2.")),
    "wrn": (zoo_network("wrn-10-1"), "block2", ("conv1.", "block1.", "block2.")),
    "within a block": (zoo_network("resnet8x0.25"), "layer2.0.conv1", ("conv1.", "bn1.", "layer1.", "layer2.0.conv1.")),
}

BranchedNetwork = tuple[Branched, list[nn.Module], str, Callable[[str], bool]]


def outputs(network: Branched, images: Tensor) -> list[Tensor]:
    """The logits of each branch and of the gated sum, in one pass."""
    actual_outputs: dict[str, Tensor] = {}
    handles = [
        branch.register_forward_hook(lambda _, __, output, n=n: actual_outputs.__setitem__(str(n), output))
        for n, branch in enumerate(network.branches)
    ]
    combined = network(images)
    for handle in handles:
        handle.remove()
    return [*(actual_outputs[str(n)] for n in range(len(network.branches))), combined]
