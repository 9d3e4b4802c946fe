"""The segmentation networks: sizes, roles, and every size of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build


def test_stages_are_those_of_the_encoder() -> None:
    model = Tapped(build("fpn-18-0.5", num_classes=7, input_shape=(3, 32, 48)).eval()).trace(torch.rand(2, 3, 32, 48))
    outputs = model.tap(torch.rand(2, 3, 32, 48), (*model.maps, "embedding", "logits"))
    assert [tuple(outputs[role].shape[1:]) for role in model.maps] == [
        (8, 16, 24),
        (8, 16, 24),
        (16, 8, 12),
        (32, 4, 6),
        (64, 2, 3),
    ]
    assert outputs["embedding"].shape == (2, 16)
    assert outputs["logits"].shape == (2, 7, 32, 48)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 33, 47), (3, 5, 20)])
def test_logits_have_the_size_of_the_images(shape: tuple[int, int, int]) -> None:
    network = build("fpn-10-0.25", num_classes=3, input_shape=shape)
    assert network(torch.rand(2, *shape)).shape == (2, 3, *shape[1:])


def test_depth_is_counted_in_layers_of_the_encoder() -> None:
    for depth, blocks in ((10, 1), (18, 2), (34, 4)):
        names = build(f"fpn-{depth}-0.125", num_classes=2, input_shape=(1, 8, 8)).state_dict()
        encoder = [name for name in names if "conv" in name and name.endswith("weight")]
        assert len(encoder) == depth - 1  # the classifier of the residual network is missing
        assert f"layer4.{blocks - 1}.conv2.weight" in names


def test_sizes_that_do_not_exist_are_refused(refused: Any) -> None:
    with refused("8n+2", "10 and 18"):
        build("fpn-12", num_classes=2, input_shape=(1, 8, 8))
    with refused("multiple of 1/16"):
        build("fpn-10-0.7", num_classes=2, input_shape=(1, 8, 8))


def test_a_step_at_initialisation_changes_every_weight() -> None:
    network = build("fpn-10-0.25", num_classes=3, input_shape=(1, 16, 16))
    network(torch.rand(4, 1, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
