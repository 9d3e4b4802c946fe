"""The blocks of a network: cut points, residual blocks, single layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.blocks import blocks
from tutelage.models.zoo import build

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Outside(nn.Module):
    """A sum and a loose parameter outside of the layers, a layer that runs twice, an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = self.left(x) + self.right(x)
        x = self.twice(self.twice(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Bilinear(4, 4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))[:, :1].expand(-1, 4)
        return self.fc(self.first(x, x))  # type: ignore[no-any-return]


def of(name: str) -> nn.Module:
    return build(name, num_classes=10, input_shape=(3, 32, 32)).eval()


def test_residual_network_divides_into_its_blocks() -> None:
    stages = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    assert blocks(of("resnet14"), IMAGES) == ["conv1", "bn1", *stages, "fc"]
    assert blocks(of("wrn-10-1"), IMAGES) == ["conv1", "block1.0", "block2.0", "block3.0", "bn", "fc"]


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-2", "vgg8", "mobilenetv2", "shufflenetv2"])
def test_blocks_hold_all_weights_and_their_outputs_are_all_that_follows(name: str) -> None:
    network = of(name)
    names = blocks(network, IMAGES)
    owned = [key for block in names for key, _ in network.get_submodule(block).named_parameters(prefix=block)]
    assert owned == [key for key, _ in network.named_parameters()]
    for block in names:  # no gradient passes by a block
        images = IMAGES.clone().requires_grad_()
        handle = network.get_submodule(block).register_forward_hook(lambda _, __, output: output.detach())
        logits = network(images)
        handle.remove()
        assert not logits.requires_grad or torch.autograd.grad(logits.sum(), images, allow_unused=True) == (None,)


def test_blocks_cannot_be_divided_further() -> None:
    network = of("resnet14")
    for name, module in network.get_submodule("layer2.0").named_modules(prefix="layer2.0"):
        if name.split(".")[-1] in ("conv1", "bn1", "conv2", "bn2"):
            images = IMAGES.clone().requires_grad_()
            handle = module.register_forward_hook(lambda _, __, output: output.detach())
            (gradient,) = torch.autograd.grad(network(images).sum(), images)  # through the shortcut
            handle.remove()
            assert gradient.abs().sum() > 0


def test_sums_repeated_layers_and_loose_parameters_make_one_block() -> None:
    assert blocks(Outside(), IMAGES) == [""]  # its own forward adds two layers: their container is the network
    assert blocks(nn.Sequential(Scaled(), nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGES) == ["0", "2"]
    assert blocks(nn.Sequential(nn.Conv2d(3, 3, 1), Outside()), IMAGES) == ["0", "1"]
    assert blocks(Inputs(), IMAGES) == [""]  # a layer with two inputs
    assert blocks(nn.Flatten(), IMAGES) == [""]


def test_network_and_random_numbers_are_unchanged(state_of: Any, changed: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True)).train()
    before, random_state, images = state_of(network), torch.get_rng_state(), IMAGES.clone()
    with torch.no_grad():  # the caller's mode
        assert blocks(network, images) == ["0", "1"]
    assert changed(before, state_of(network)) == set()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(images, IMAGES)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
