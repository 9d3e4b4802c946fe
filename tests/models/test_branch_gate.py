"""The gate of a branched network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.models.branching import EXAMPLE
from tutelage.errors import TutelageError
from tutelage.models.surgery import branch
from tutelage.models.surgery.branch import Gate


def test_gate_weights_sum_to_1() -> None:
    torch.manual_seed(0)
    gate = Gate(5, 3).train()
    for shared in (torch.randn(7, 5, 4, 4), torch.randn(7, 9, 5), torch.randn(7, 5)):
        gates = gate(shared)
        assert gates.shape == (7, 3)
        torch.testing.assert_close(gates.sum(1), torch.ones(7))
        assert (gates > 0).all()
        assert not torch.allclose(gates, torch.full((7, 3), 1 / 3))


def test_the_gate_is_pool_linear_norm_relu_softmax() -> None:
    torch.manual_seed(0)
    gate = Gate(5, 3).train()
    nn.init.uniform_(gate.norm.weight, 0.5, 1.5)
    nn.init.normal_(gate.norm.bias)
    pooled = torch.randn(8, 5)
    offsets = torch.randn(8, 5, 2, 3)
    maps = pooled[:, :, None, None] + offsets - offsets.mean((2, 3), keepdim=True)
    z = pooled.double() @ gate.linear.weight.double().T + gate.linear.bias.double()
    normalized = (z - z.mean(0)) / (z.var(0, unbiased=False) + gate.norm.eps).sqrt()
    normalized = normalized * gate.norm.weight.double() + gate.norm.bias.double()
    exponentials = torch.where(normalized > 0, normalized, 0.0).exp()
    expected = (exponentials / exponentials.sum(1, keepdim=True)).float()
    assert (normalized < 0).any()
    for shared in (pooled, maps, maps.flatten(2).transpose(1, 2)):
        torch.testing.assert_close(gate(shared), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branches", [2, 3, 5])
def test_gate_weights_are_uniform_if_no_activation_is_positive(branches: int) -> None:
    gate = Gate(4, branches)
    gate.norm.bias.data.fill_(-50)
    expected = torch.full((6, branches), 1 / branches)
    assert torch.equal(gate.train()(torch.randn(6, 4)), expected)
    assert torch.equal(gate.eval()(torch.randn(6, 4)), expected)


class Repeating(nn.Module):
    """A layer that gets each image twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(torch.cat([images, images]))
        return self.fc(maps.mean((2, 3)).view(2, len(images), 4).mean(0))  # type: ignore[no-any-return]


def test_a_gate_refuses_a_layer_with_another_number_of_rows() -> None:
    with pytest.raises(TutelageError, match="'conv' of Repeating returns 4 rows for 2 samples"):
        branch.apply(Repeating(), EXAMPLE, at="conv", branches=2)
    assert branch.apply(Repeating(), EXAMPLE, at="conv", branches=2, combine="mean")(EXAMPLE).shape == (2, 3)
