"""VGG, ShuffleNet, ShuffleNet V2 and MobileNetV2 of half width: published sizes, stages, and small and large images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.evaluation import parameters
from tutelage.models.networks.shufflenetv1 import shuffled
from tutelage.models.networks.shufflenetv2 import ShuffleNetV2, SplitUnit
from tutelage.models.networks.vgg import VGG
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build

COUNTS = {
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "shufflenetv2x0.5": 443_716,
    "mobile_half": 812_836,
}
"""Parameters for 100 classes, as counted in the public code."""

SIDES = {
    "vgg8": [32, 16, 8, 4, 4],
    "vgg13": [32, 16, 8, 4, 4],
    "shufflenetv1": [32, 16, 8, 4],
    "shufflenetv2": [32, 16, 8, 4],
    "mobile_half": [16, 16, 8, 4, 2],
}
CHANNELS = {
    "vgg8": [64, 128, 256, 512, 512],
    "vgg13": [64, 128, 256, 512, 512],
    "shufflenetv1": [24, 240, 480, 960],
    "shufflenetv2": [24, 116, 232, 464],
    "mobile_half": [16, 12, 16, 48, 160],
}
EMBEDDINGS = {"vgg8": 512, "vgg13": 512, "shufflenetv1": 960, "shufflenetv2": 1024, "mobile_half": 1280}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        assert parameters(build(name, num_classes=100, input_shape=(3, 32, 32))) == COUNTS[name]


@pytest.mark.parametrize("name", SIDES)
def test_stem_and_stages_are_those_of_the_field(name: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    model = Tapped(build(name, num_classes=7, input_shape=(3, 32, 32)).eval()).trace(images)
    features = model.tap(images, (*model.maps, "embedding", "logits"))
    assert [tuple(features[role].shape[1:]) for role in model.maps] == [
        (channels, side, side) for channels, side in zip(CHANNELS[name], SIDES[name], strict=True)
    ]
    assert features["embedding"].shape == (2, EMBEDDINGS[name])
    assert features["logits"].shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 28, 20), (3, 65, 64)])
@pytest.mark.parametrize("name", ["vgg8", "shufflenetv1", "shufflenetv2x0.5", "mobile_half"])
def test_any_size_and_number_of_channels(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name, num_classes=5, input_shape=shape)
    logits = network(torch.rand(3, *shape))
    assert logits.shape == (3, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_large_images_are_pooled_once_more() -> None:
    """By RepDistiller, too, for images of 64 pixels."""
    for side, expected in ((63, 7), (64, 4)):
        network = VGG(8, image_shape=(3, side, side)).eval()
        images = torch.rand(1, 3, side, side)
        assert Tapped(network).tap(images, ["stage4"])["stage4"].shape[2:] == (expected, expected)


def test_shuffle_interleaves_the_groups() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffled(channels, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert shuffled(shuffled(channels, 3), 2).equal(channels)


def test_half_of_the_channels_passes_a_unit_unchanged() -> None:
    maps = torch.rand(2, 8, 5, 5)
    assert SplitUnit(8)(maps)[:, ::2].equal(maps[:, :4])
    assert len([unit for unit in ShuffleNetV2().modules() if isinstance(unit, SplitUnit)]) == 13


def test_unknown_sizes_name_those_that_exist(refused: Any) -> None:
    with refused("no VGG of depth 12", "8, 11, 13, 16, 19"):
        build("vgg12", num_classes=5, input_shape=(3, 32, 32))
    with refused("no ShuffleNet V2 of width 0.7", "0.5, 1, 1.5, 2"):
        build("shufflenetv2x0.7", num_classes=5, input_shape=(3, 32, 32))
    with refused("did you mean"):
        build("shufflenet", num_classes=5, input_shape=(3, 32, 32))


def test_shuffled_channels_are_exported_for_any_batch_size() -> None:
    class Shuffling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return shuffled(x, 3)

    batch = torch.export.Dim("batch")  # an error if the size of the example becomes part of the program
    program = torch.export.export(Shuffling(), (torch.rand(2, 6, 4, 4),), dynamic_shapes=({0: batch},))
    images = torch.rand(5, 6, 4, 4)
    assert torch.equal(program.module()(images), shuffled(images, 3))
