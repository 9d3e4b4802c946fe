"""The CIFAR ResNet: published parameter counts, shapes at every size, and one block recomputed in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.errors import TutelageError
from tutelage.models.networks.resnet import BasicBlock, ResNet

Array = NDArray[np.float64]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("depth", "count"),
    [
        (8, 75_290),
        (14, 172_506),
        (20, 269_722),
        (26, 366_938),
        (32, 464_154),
        (44, 658_586),
        (56, 853_018),
        (110, 1_727_962),
    ],
)
def test_parameter_counts(depth: int, count: int) -> None:
    assert parameters(ResNet(depth)) == count


def test_width_multiplies_every_layer() -> None:
    def parameter_count(channels: int, classes: int) -> int:
        stem = 3 * channels * 9 + 2 * channels
        total, previous = stem, channels
        for stage in (channels, 2 * channels, 4 * channels):
            total += 9 * previous * stage + 9 * stage * stage + 4 * stage
            previous = stage
        return total + previous * classes + classes

    wide, narrow = ResNet(8, num_classes=100, width=4), ResNet(8, width=0.5)
    assert wide.conv1.out_channels == 64
    assert parameters(wide) == parameter_count(64, 100)
    assert parameters(narrow) == parameter_count(8, 10)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((1, 8, 8), [(8, 8), (4, 4), (2, 2)]),
        ((1, 7, 9), [(7, 9), (4, 5), (2, 3)]),
        ((1, 28, 28), [(28, 28), (14, 14), (7, 7)]),
        ((3, 32, 32), [(32, 32), (16, 16), (8, 8)]),
        ((3, 64, 64), [(64, 64), (32, 32), (16, 16)]),
    ],
)
def test_shapes_of_logits_and_stages(shape: tuple[int, int, int], sides: list[tuple[int, int]]) -> None:
    network = ResNet(8, num_classes=7, in_channels=shape[0])
    shapes: list[tuple[int, ...]] = []
    for stage in (network.layer1, network.layer2, network.layer3):
        stage.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    assert network(torch.rand(2, *shape)).shape == (2, 7)
    assert shapes == [(2, channels, *side) for channels, side in zip((16, 32, 64), sides, strict=True)]


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "stride", "height", "width"),
    [(3, 3, 1, 5, 4), (2, 4, 2, 8, 8), (2, 4, 2, 7, 5), (2, 5, 2, 6, 7)],
)
def test_block_against_plain_loops(channels_in: int, channels_out: int, stride: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    block = BasicBlock(channels_in, channels_out, stride).double().eval()
    for norm in (block.bn1, block.bn2):
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert vector is not None
            nn.init.uniform_(vector.data, 0.2, 1.5)
    x = torch.randn(2, channels_in, height, width, dtype=torch.float64)

    hidden_map = np.maximum(normalised(convolution(x.numpy(), block.conv1, stride), block.bn1), 0)
    out = normalised(convolution(hidden_map, block.conv2, 1), block.bn2)
    previous = (channels_out - channels_in) // 2
    for b, c, i, j in np.ndindex(2, channels_in, *out.shape[2:]):
        out[b, previous + c, i, j] += x[b, c, stride * i, stride * j].item()
    np.testing.assert_allclose(block(x).detach().numpy(), np.maximum(out, 0), rtol=1e-10, atol=1e-12)


def convolution(x: Array, layer: nn.Conv2d, stride: int) -> Array:
    """A 3x3 convolution with one pixel of zeros around, pixel by pixel."""
    kernel = layer.weight.detach().numpy()
    batch, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((batch, kernel.shape[0], -(-height // stride), -(-width // stride)))
    for b, o, i, j in np.ndindex(*out.shape):
        window = padded[b, :, stride * i : stride * i + 3, stride * j : stride * j + 3]
        out[b, o, i, j] = (window * kernel[o]).sum()
    return out


def normalised(x: Array, layer: nn.BatchNorm2d) -> Array:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    weight, bias, mean, var = (
        tensor.detach().numpy()[None, :, None, None]
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    )
    return np.asarray((x - mean) / np.sqrt(var + layer.eps) * weight + bias)


def test_convolutions_are_initialised_by_fan_out() -> None:
    torch.manual_seed(0)
    network = ResNet(8, width=4)
    first = network.layer2[0]
    assert isinstance(first, BasicBlock)
    # 64 channels in, 128 out: with fan-in the standard deviation would be 1.41 times as large.
    assert first.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)


def test_every_parameter_gets_a_gradient() -> None:
    network = ResNet(14)
    network(torch.rand(4, 3, 8, 8)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(18, "14 and 20"), (34, "32 and 38"), (21, "20 and 26"), (2, "8 and 14"), (-4, "8 and 14")],
)
def test_invalid_depths_raise_and_name_the_nearest(depth: int, nearest: str) -> None:
    with pytest.raises(TutelageError) as exc_info:
        ResNet(depth)
    message = str(exc_info.value)
    assert f"ResNet depth {depth} is not 6n+2" in message
    assert message.endswith(f"the nearest are {nearest}")
    assert "\n" not in message


@pytest.mark.parametrize(("width", "channels"), [(0, "0"), (0.3, "4.8"), (-1, "-16")])
def test_invalid_widths_raise(width: float, channels: str) -> None:
    with pytest.raises(TutelageError, match=rf"^ResNet width {width} gives {channels} channels .* multiple of 1/16$"):
        ResNet(8, width=width)
