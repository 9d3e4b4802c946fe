"""The plain convolutional networks of one topology and several widths."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from tutelage.methods.small_data.networks.cnn import CNN
from tutelage.models import zoo
from tutelage.models.tapped import Tapped


def test_widths_share_their_topology_and_parameters_grow_as_the_square() -> None:
    networks = [zoo.build(f"cnn{width}", num_classes=10, input_shape=(3, 32, 32)) for width in ("0.5", "1", "2", "4")]
    names = [list(dict(network.named_modules())) for network in networks]
    assert all(other == names[0] for other in names)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    for smaller, larger in pairwise(counts):
        assert 3.6 < larger / smaller < 4
    # by hand, width 1: 3x3 convolutions 3-16-16-32-32-64-64, 64 x 4 x 4 to 64, and 64 to 10
    pairs = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]
    assert counts[1] == sum(9 * a * b + b for a, b in pairs) + 1024 * 64 + 64 + 650


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 20)])
def test_sizes_of_images(shape: tuple[int, int, int]) -> None:
    model = Tapped(zoo.build("cnn1", num_classes=7, input_shape=shape))
    inputs = torch.rand(2, *shape)
    outputs = model.tap(inputs, ("logits", "embedding"))
    assert outputs["logits"].shape == (2, 7)
    assert outputs["embedding"].shape == (2, 64)
    assert model.stages


def test_invalid_sizes_are_refused(refused: Any) -> None:
    with refused("at least 8 x 8", "7 x 9"):
        CNN(10, (1, 7, 9))
    with refused("cnn0.3", "4.8 channels", "0.5"):
        CNN(10, (1, 8, 8), 0.3)
