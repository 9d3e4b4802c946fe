"""Wide ResNets: published parameter counts, shapes at every size, and a block composed from its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.networks.wrn import WRN, WideBlock


@pytest.mark.parametrize(
    ("depth", "width", "count"),
    [(10, 2, 303_706), (16, 2, 691_674), (28, 2, 1_467_610), (40, 2, 2_243_546)],
)
def test_parameter_counts(depth: int, width: int, count: int) -> None:
    assert sum(parameter.numel() for parameter in WRN(depth, width).parameters()) == count


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((1, 8, 8), (8, 4, 2)),
        ((1, 7, 7), (7, 4, 2)),
        ((1, 28, 28), (28, 14, 7)),
        ((3, 32, 32), (32, 16, 8)),
        ((3, 64, 64), (64, 32, 16)),
    ],
)
def test_shapes_of_logits_and_roles(shape: tuple[int, int, int], sides: tuple[int, int, int]) -> None:
    network = WRN(10, 2, num_classes=7, in_channels=shape[0])
    feature_maps: dict[str, Tensor] = {}
    normalised: list[Tensor] = []
    network.bn.register_forward_pre_hook(lambda _, inputs: normalised.append(inputs[0]))
    for role, layer in list(WRN.roles.items())[:4]:
        network.get_submodule(layer).register_forward_hook(
            lambda _, __, out, role=role: feature_maps.update({role: out})
        )
    assert network(torch.rand(2, *shape)).shape == (2, 7)
    assert tuple(feature_maps.pop("stem").shape) == (2, 16, *shape[1:])
    assert {role: tuple(out.shape) for role, out in feature_maps.items()} == {
        f"stage{index}": (2, channels, side, side)
        for index, channels, side in zip((1, 2, 3), (32, 64, 128), sides, strict=True)
    }
    assert all(out.min() < 0 for out in feature_maps.values())  # not activated
    assert normalised[0] is feature_maps["stage3"]  # nor normalised


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """Batch statistics, written out."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = layer.weight[None, :, None, None], layer.bias[None, :, None, None]
    return (x - mean) / (var + layer.eps).sqrt() * scale + shift


def test_identity_shortcut_adds_the_raw_input() -> None:
    torch.manual_seed(0)
    block, x = WideBlock(4, 4, 1).double(), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    inner = F.conv2d(norm(x, block.bn1).clamp(min=0), block.conv1.weight, padding=1)
    expected = x + F.conv2d(norm(inner, block.bn2).clamp(min=0), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected)
    assert block.shortcut is None


@pytest.mark.parametrize(("channels", "stride"), [(6, 1), (4, 2), (6, 2)])
def test_projection_shortcut_takes_the_activated_input(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    block, x = WideBlock(4, channels, stride).double(), torch.randn(3, 4, 7, 7, dtype=torch.float64)
    active = norm(x, block.bn1).clamp(min=0)
    inner = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    assert block.shortcut is not None
    projection = torch.einsum("oc,bchw->bohw", block.shortcut.weight[:, :, 0, 0], active[:, :, ::stride, ::stride])
    expected = projection + F.conv2d(norm(inner, block.bn2).clamp(min=0), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), expected)


def test_logits_from_the_activated_mean_of_the_last_group() -> None:
    torch.manual_seed(0)
    network, x = WRN(10, 1, num_classes=5), torch.rand(4, 3, 8, 8)
    nn.init.normal_(network.fc.bias)
    groups = network.block3(network.block2(network.block1(network.conv1(x))))
    pooled = norm(groups, network.bn).clamp(min=0).flatten(2).mean(-1)
    torch.testing.assert_close(network(x), pooled @ network.fc.weight.T + network.fc.bias)


def test_the_bias_starts_at_0() -> None:
    assert not WRN(10, 1).fc.bias.any()


@pytest.mark.parametrize(
    ("depth", "nearest"), [(18, "16 and 22"), (20, "16 and 22"), (4, "10 and 16"), (0, "10 and 16")]
)
def test_invalid_depths_raise_and_name_the_nearest(depth: int, nearest: str) -> None:
    with pytest.raises(TutelageError, match=rf"^WRN depth {depth} is not 6n\+4 .*the nearest are {nearest}$"):
        WRN(depth, 2)


def test_width_0_raises() -> None:
    with pytest.raises(TutelageError, match=r"^WRN width 0 leaves no channels: take 1 or more$"):
        WRN(10, 0)
