"""MobileNetV2: published sizes, and less downsampling for small images."""

from __future__ import annotations

import pytest
import torch

from tutelage.errors import TutelageError
from tutelage.evaluation import flops, parameters
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build


@pytest.mark.parametrize(("name", "count"), [("mobilenetv2", 3_504_872), ("mobilenetv2x0.5", 1_968_680)])
def test_parameter_counts_equal_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build(name, num_classes=1000, input_shape=(3, 224, 224))) == count


def test_multiply_adds_equal_the_published_number() -> None:
    network = build("mobilenetv2", num_classes=1000, input_shape=(3, 224, 224))
    assert flops(network, torch.full((1, 3, 224, 224), 0.5)) / 2 == pytest.approx(300e6, rel=0.01)


@pytest.mark.parametrize(
    ("side", "sides"), [(8, [8, 4, 2, 1]), (32, [32, 16, 8, 4]), (63, [63, 32, 16, 8]), (64, [32, 16, 8, 4, 2])]
)
def test_small_images_are_downsampled_8_times_and_others_32_times(side: int, sides: list[int]) -> None:
    images = torch.rand(2, 1, side, side)
    network = build("mobilenetv2x0.35", num_classes=5, input_shape=(1, side, side))
    model = Tapped(network).trace(images)
    features = model.tap(images, (*model.maps, "embedding", "logits"))
    stages = [features[stage].shape[-1] for stage in model.stages]
    assert stages == sides
    assert features["stem"].shape[-1] == sides[0]
    assert features["embedding"].shape == (2, 1280)
    assert features.logits is not None
    assert features.logits.shape == (2, 5)


def test_it_costs_about_half_of_resnet8_at_96_pixels() -> None:
    shape = (3, 96, 96)
    image = torch.full((1, *shape), 0.5)
    costs = {name: flops(build(name, num_classes=10, input_shape=shape), image) for name in ("mobilenetv2", "resnet8")}
    assert costs["mobilenetv2"] < 0.55 * costs["resnet8"]


def test_width_0_raises() -> None:
    with pytest.raises(TutelageError, match="width 0 gives no channels"):
        build("mobilenetv2x0", num_classes=10, input_shape=(3, 32, 32))
