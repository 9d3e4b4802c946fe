"""The networks of FastSal: sizes and channels of the paper, and images of other sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.methods.fastsal.networks._encoder import Encoder, Level
from tutelage.methods.fastsal.networks.fastsal_a import FastSalA, Refinement
from tutelage.methods.fastsal.networks.fastsal_c import FastSalC
from tutelage.methods.fastsal.networks.salgan import SalGAN
from tutelage.models.networks.mobilenetv2 import InvertedResidual
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build

PAPER = (3, 192, 256)


def shapes(network: nn.Module, roles: list[str], shape: tuple[int, int, int] = PAPER) -> list[tuple[int, ...]]:
    model, images = Tapped(network).eval(), torch.rand(1, *shape)
    with torch.no_grad():
        outputs = model.trace(images).tap(images, roles)
    return [tuple(outputs[role].shape[1:]) for role in roles]


@pytest.mark.parametrize("network", [FastSalC, FastSalA])
def test_levels_have_the_channels_and_sizes_of_the_paper(network: Any) -> None:
    levels = [f"level{number}" for number in range(1, 5)]
    assert shapes(network(width=1), levels) == [(28, 96, 128), (24, 48, 64), (136, 24, 32), (520, 12, 16)]
    stages = [f"stage{number}" for number in range(1, 6)]
    assert [shape[0] for shape in shapes(network(), stages)] == [16, 24, 32, 96, 320]
    assert shapes(network(), ["embedding", "logits"]) == [(1280,), (1, 192, 256)]


def test_decoder_c_concatenates_1408_channels() -> None:
    network = FastSalC()
    assert [adapter[0].out_channels for adapter in network.adapters] == [128, 256, 512, 512]  # type: ignore[index]
    assert network.head.in_channels == 1408 // 4 == 352
    assert network.head.out_channels == 1


def test_decoder_a_has_a_quarter_of_the_channels_after_each_refinement() -> None:
    network = FastSalA()
    assert [adapter[0].out_channels for adapter in network.adapters] == [8, 32, 128, 512]  # type: ignore[index]
    assert network.head.in_channels == 2
    for refinement in network.refinements:
        assert isinstance(refinement, Refinement)
        inner = refinement.residual.conv[0][0]  # type: ignore[index]
        assert inner.out_channels == 2 * inner.in_channels  # type: ignore[union-attr, operator]
        assert refinement.residual.shortcut


def test_refinement_has_two_shortcuts() -> None:
    refinement = Refinement(8)
    nn.init.zeros_(refinement.residual.conv[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(refinement.residual.conv[-1].bias)  # type: ignore[arg-type]
    x = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(refinement(x), F.pixel_shuffle(2 * x, 2))


def test_levels_merge_the_outputs_of_all_18_blocks() -> None:
    """Merging by hand what hooks see gives the levels."""
    encoder = Encoder((3, 64, 96), 0.25).eval()
    maps: list[Tensor] = []
    blocks = [module for module in encoder.modules() if isinstance(module, InvertedResidual)]
    for block in (*blocks, encoder.last):
        block.register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
    with torch.no_grad():
        levels = encoder(torch.rand(2, 3, 64, 96))
    assert len(maps) == 18
    finest = torch.cat([maps[0], F.pixel_shuffle(torch.cat(maps[1:3], 1), 2)], 1)
    others = [F.pixel_shuffle(torch.cat(maps[first:end], 1), 2) for first, end in ((3, 6), (6, 13), (13, 18))]
    for level, expected in zip(levels, [finest, *others], strict=True):
        assert torch.equal(level, expected)
    assert encoder.channels == tuple(level.shape[1] for level in levels)


def test_decoders_by_hand() -> None:
    images = torch.rand(2, 3, 64, 96)
    c, a = FastSalC((3, 64, 96), 0.25).eval(), FastSalA((3, 64, 96), 0.25).eval()
    with torch.no_grad():
        features = [adapter(level) for adapter, level in zip(c.adapters, c.encoder(images), strict=True)]
        enlarged = [F.interpolate(x, scale_factor=2**n, mode="bilinear") for n, x in enumerate(features)]
        torch.testing.assert_close(c(images), c.head(F.pixel_shuffle(torch.cat(enlarged, 1), 2)))
        one, two, three, four = (adapter(x) for adapter, x in zip(a.adapters, a.encoder(images), strict=True))
        r1, r2, r3, r4 = a.refinements
        torch.testing.assert_close(a(images), a.head(r1(one + r2(two + r3(three + r4(four))))))


@pytest.mark.parametrize("name", ["fastsal-a", "fastsal-c", "fastsal-ax0.25", "fastsal-cx0.1", "salganx0.0625"])
@pytest.mark.parametrize("shape", [(3, 48, 64), (1, 7, 13), (3, 1, 1)])
def test_output_has_the_size_of_the_image(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name, num_classes=1, input_shape=shape).eval()
    with torch.no_grad():
        assert network(torch.rand(2, *shape)).shape == (2, 1, *shape[1:])


def test_cutting_keeps_pixels_in_place() -> None:
    maps = torch.rand(1, 4, 3, 3)
    cut = Level((5, 6))([maps])
    assert torch.equal(cut, F.pixel_shuffle(maps, 2)[:, :, :5])


def test_teacher_has_the_decoder_of_salgan() -> None:
    decoder = [f"decoder{number}" for number in range(1, 5)]
    narrow = SalGAN(width=0.125)
    assert shapes(narrow, decoder) == [(16, 96, 128), (32, 48, 64), (64, 24, 32), (64, 12, 16)]
    with torch.device("meta"):
        whole = SalGAN()
    assert sum(isinstance(layer, nn.Conv2d) for layer in whole.modules()) == 13 + 13 + 1
    assert [block[0].out_channels for block in whole.decoder] == [64, 128, 256, 512, 512]  # type: ignore[index]
    for finer, coarser in pairwise(shapes(narrow, [f"stage{number}" for number in range(1, 6)])):
        assert coarser[1:] == (finer[1] // 2, finer[2] // 2)


def test_networks_without_channels_are_refused(refused: Any) -> None:
    with refused("SalGAN of width 0", "positive"):
        SalGAN(width=0)
    with refused("MobileNetV2 width 0"):
        FastSalA(width=0)
