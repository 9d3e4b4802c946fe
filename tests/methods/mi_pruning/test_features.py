"""The outputs of units as vectors, also where a later layer overwrites them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.methods.mi_pruning.features import unit_outputs
from tutelage.models.tapped import Tapped


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def test_outputs_are_pooled_or_flattened(tiny_data: Data) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), Tokens(), nn.Linear(3, 5), nn.Flatten(), nn.Linear(180, 4)
    )
    model = Tapped(network, [0.4], [0.3]).train()
    pixels = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    maps = network[0]((pixels - 0.4) / 0.3)
    tokens = network[3](network[2](maps.relu()))
    logits = model(pixels)
    pooled = unit_outputs(model, ["0", "3", "5"], tiny_data.test, pooled=True)
    torch.testing.assert_close(pooled["0"], maps.mean((2, 3)))
    torch.testing.assert_close(pooled["3"], tokens.mean(1))
    torch.testing.assert_close(pooled["5"], logits)
    flat = unit_outputs(model, ["0", "3"], tiny_data.test, pooled=False)
    torch.testing.assert_close(flat["0"], maps.flatten(1))
    torch.testing.assert_close(flat["3"], tokens.flatten(1))
    assert not pooled["0"].requires_grad
    assert model.training
