"""Pairs of networks for the conformance tests: makers of a student and of a teacher, by what is special about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tests.conftest import TinyNet
from tests.models.networks import Residual
from tests.token_network import TokenNetwork
from tutelage.config import Recipe
from tutelage.data.modality import Tokens
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped

Make = Callable[[], Tapped]

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.02)
"""What the conformance tests train with."""


class ImageNetStyle(nn.Module):
    """Stem, max-pool, layers, average pool and fc, with torchvision's names; halves the image at once."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 1, 1)
        self.layer1 = nn.Sequential(Residual(width, width, 1))
        self.layer2 = nn.Sequential(Residual(width, 2 * width, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def network_with_named_roles(width: int = 4) -> Tapped:
    """A network whose layers have numbers as names, and whose roles are given."""
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )
    return Tapped(module, roles={"stage1": "0", "stage2": "1", "embedding": "input:4"})


TEXTS = Tokens(12)
"""The modality of the data for methods that are for texts."""


def zoo_network(name: str, *, texts: bool = False) -> Make:
    """A network of the zoo, for images of a quarter of the usual width, or for texts."""
    if texts:
        return lambda: Tapped(make_model(name, num_classes=4, input_shape=(6,), modality=TEXTS).module)
    return lambda: Tapped(make_model(name, num_classes=4, input_shape=(1, 8, 8)).module, [0.4], [0.3])


def tiny(width: int) -> Make:
    """The test suite's own network, with dropout."""
    return lambda: Tapped(TinyNet(width=width, dropout=0.1), [0.5], [0.25])


PAIRS: Mapping[str, tuple[Make, Make]] = MappingProxyType(
    {
        "a narrower student": (tiny(3), tiny(6)),
        "a transformer learns": (lambda: Tapped(TokenNetwork()), tiny(4)),
        "roles named by hand": (network_with_named_roles, lambda: network_with_named_roles(6)),
        "the same network": (tiny(4), tiny(4)),
        "a wider student": (tiny(7), tiny(4)),
        "resnet teaches wrn": (zoo_network("wrn-10-1"), zoo_network("resnet8x0.25")),
        "wrn teaches resnet": (zoo_network("resnet8x0.25"), zoo_network("wrn-10-1")),
        "a transformer teaches": (tiny(4), lambda: Tapped(TokenNetwork())),
        "another depth": (zoo_network("resnet8x0.25"), zoo_network("resnet20x0.25")),
        "torchvision's style learns": (lambda: Tapped(ImageNetStyle()), zoo_network("resnet8x0.25")),
        "torchvision's style teaches, on smaller maps": (zoo_network("wrn-10-1"), lambda: Tapped(ImageNetStyle(6))),
    }
)

FEW = ("a narrower student", "a transformer learns", "roles named by hand")
"""For a method that reads nothing but logits: a CNN, a transformer, a network whose layers say nothing."""

STUDENTS = (*FEW, "resnet teaches wrn", "wrn teaches resnet", "torchvision's style learns")
"""One pair for each kind of student, for a method that reads or changes the layers of its student alone."""
