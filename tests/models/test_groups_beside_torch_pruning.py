"""Groups of units beside those of torch-pruning, also with grouped convolutions, shuffles and shared layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.networks import with_statistics
from tutelage.models.groups import drop, groups
from tutelage.models.zoo import build

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shuffled(x: Tensor) -> Tensor:
    """Channels in two groups, in turn."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Shuffle(nn.Module):
    """Grouped convolutions, and halves of the channels that are split, concatenated and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 12, 1, groups=2), nn.Conv2d(12, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.between = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.squeezed = nn.Conv2d(8, 10, 1), nn.BatchNorm2d(10)
        self.last, self.fc = nn.Conv2d(10, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.up(self.depthwise(shuffled(self.down(x)))))
        first, second = x.chunk(2, 1)
        x = shuffled(torch.cat([first, self.right(self.between(F.relu(self.left(second))))], 1))
        x = F.relu(self.squeezed(self.squeeze(x)))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Siamese(nn.Module):
    """Layers that run twice, and a concatenation of their outputs before a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.other = nn.Conv2d(6, 4, 1)
        self.norm, self.depthwise = nn.BatchNorm2d(14), nn.Conv2d(14, 14, 3, padding=1, groups=14)
        self.merge, self.again = nn.Conv2d(14, 9, 1), nn.Conv2d(9, 9, 3, padding=1)
        self.grow, self.pair = nn.Conv2d(9, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Sequential(nn.Linear(16, 11), nn.ReLU(), nn.Linear(11, 5))

    def forward(self, x: Tensor) -> Tensor:
        one, two = F.relu(self.first(x)), F.relu(self.first(x.flip(3)))
        x = torch.cat([self.shared(one), self.shared(two), self.other(one + two)], 1)
        x = F.relu(self.merge(self.depthwise(F.relu(self.norm(x)))))
        x = F.relu(self.again(self.again(x)))
        x = F.relu(self.pair(F.relu(self.grow(x))))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Dense connections, two filters for each channel, a gate, channels as pixels, and a token of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.norm3, self.transition = nn.BatchNorm2d(14), nn.Conv2d(14, 8, 1)
        self.two_each, self.point = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(16, 12, 1)
        self.down, self.up = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.pixels, self.norm = nn.Conv2d(12, 8, 1), nn.GroupNorm(2, 2)
        self.wide, self.token = nn.Conv2d(2, 6, 3, padding=1), nn.Parameter(torch.randn(1, 6))
        self.embed, self.fc = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        x = F.relu(self.point(self.two_each(self.transition(F.relu(self.norm3(x))))))
        x = x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = self.norm(F.pixel_shuffle(self.pixels(x), 2))
        x = F.relu(self.wide(x)).mean((2, 3))
        return self.fc(F.relu(self.embed(x) + self.embed(self.token)))  # type: ignore[no-any-return]


LAYERS = {
    Shuffle: [["left"], ["squeeze"], ["last"]],
    Siamese: [["first"], ["shared"], ["other"], ["grow"], ["pair"], ["head.0"]],
    Dense: [["stem"], ["conv1"], ["conv2"], ["point", "up"], ["down"]],
}
"""The layers of each group. No unit can be removed alone before a grouped convolution, from what is shuffled or from
the inputs of a layer that reads its own outputs, nor without the token."""


@pytest.mark.parametrize("make", LAYERS)
def test_layers_whose_units_can_be_removed(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = with_statistics(make())
    assert [sorted(group.layers) for group in groups(network, IMAGES)] == LAYERS[make]
    for group in groups(network, IMAGES):
        for removed in ([1], list(range(1, group.units, 2))):
            unread, smaller = copy.deepcopy(network), copy.deepcopy(network)
            for name, columns in group.consumers.items():
                unread.get_parameter(f"{name}.weight").data[:, columns[removed].flatten()] = 0
            drop(smaller, group, removed)
            torch.testing.assert_close(smaller(IMAGES), unread(IMAGES))


@pytest.mark.parametrize("network", ["vgg8", "mobilenetv2x0.5", "wrn-10-1", *LAYERS])
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_groups_equal_those_of_torch_pruning(network: str | Callable[[], nn.Module]) -> None:
    pruning = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    if isinstance(network, str):
        whole, images = build(network, num_classes=10, input_shape=(3, 32, 32)).eval(), torch.randn(2, 3, 32, 32)
    else:
        whole, images = network().eval(), IMAGES
    graph = pruning.DependencyGraph().build_dependency(whole, images)
    names = {module: name for name, module in whole.named_modules()}
    for group in groups(whole, images):
        first = next(iter(group.layers))
        layer = whole.get_submodule(first)
        is_linear = isinstance(layer, nn.Linear)
        prune = pruning.prune_linear_out_channels if is_linear else pruning.prune_conv_out_channels
        reference: dict[str, set[int]] = {}
        for dependency, indices in graph.get_pruning_group(layer, prune, idxs=[0, 2]):
            module = dependency.target.module
            if module in names:
                reads = dependency.handler.__name__.endswith("in_channels")
                reference.setdefault(f"{names[module]} {reads}", set()).update(indices)
        removed = {
            f"{name} {reads}": set(columns[[0, 2]].flatten().tolist())
            for reads, layers in ((False, {**group.layers, **group.between}), (True, group.consumers))
            for name, columns in layers.items()
        }
        assert {key: value for key, value in reference.items() if key in removed} == removed
        assert {key.split()[0] for key in reference} == {key.split()[0] for key in removed}
