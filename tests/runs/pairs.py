"""Pairs of networks for the conformance tests: makers of a student and of a teacher, by what is special about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from tests.conftest import TinyNet
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped

Make = Callable[[], Tapped]


class Mixer(nn.Module):
    """A transformer block's shape without its attention."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.across = nn.Linear(tokens, tokens)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Vit(nn.Module):
    """Patches, a class token, blocks of one resolution, a head on the class token."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([Mixer(width, 17) for _ in range(4)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A block as torchvision's: one ReLU, in place, runs twice."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


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
    """Layers without names that tell anything, and their roles named by hand."""
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )
    return Tapped(module, roles={"stage1": "0", "stage2": "1", "embedding": "input:4"})


def zoo_network(name: str) -> Make:
    """A network of the zoo, of a quarter of the usual width."""
    return lambda: Tapped(make_model(name, num_classes=4, input_shape=(1, 8, 8)).module, [0.4], [0.3])


def tiny(width: int) -> Make:
    """The test suite's own network, with dropout."""
    return lambda: Tapped(TinyNet(width=width, dropout=0.1), [0.5], [0.25])


PAIRS: Mapping[str, tuple[Make, Make]] = MappingProxyType(
    {
        "a narrower student": (tiny(3), tiny(6)),
        "a transformer learns": (lambda: Tapped(Vit()), tiny(4)),
        "roles named by hand": (network_with_named_roles, lambda: network_with_named_roles(6)),
        "the same network": (tiny(4), tiny(4)),
        "a wider student": (tiny(7), tiny(4)),
        "resnet teaches wrn": (zoo_network("wrn-10-1"), zoo_network("resnet8x0.25")),
        "wrn teaches resnet": (zoo_network("resnet8x0.25"), zoo_network("wrn-10-1")),
        "a transformer teaches": (tiny(4), lambda: Tapped(Vit())),
        "another depth": (zoo_network("resnet8x0.25"), zoo_network("resnet20x0.25")),
        "torchvision's style learns": (lambda: Tapped(ImageNetStyle()), zoo_network("resnet8x0.25")),
        "torchvision's style teaches, on smaller maps": (zoo_network("wrn-10-1"), lambda: Tapped(ImageNetStyle(6))),
    }
)

FEW = ("a narrower student", "a transformer learns", "roles named by hand")
"""For a method that reads nothing but logits: a CNN, a transformer, a network whose layers say nothing."""

STUDENTS = (*FEW, "resnet teaches wrn", "wrn teaches resnet", "torchvision's style learns")
"""One pair for each kind of student, for a method that reads or changes the layers of its student alone."""
