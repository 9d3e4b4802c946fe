"""Which layers are connected, the activations of both, and removal of units that nothing reads."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.runs.pairs import ImageNetStyle
from tutelage.methods.mint import cut, magnitudes, sparsity
from tutelage.methods.mint.connections import Connection, activations, connections, group_sizes, remove_unread
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped

EXAMPLE = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sequential_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


class Joined(nn.Module):
    """A concatenation, a sum and a layer that two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.after = nn.Linear(64, 4), nn.Linear(64, 4), nn.Linear(8, 5)
        self.twice, self.one, self.other = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = F.relu(self.after(torch.cat([self.left(x), self.right(x)], 1)))
        x = F.relu(self.twice(x))
        return self.one(x) + self.other(x)  # type: ignore[no-any-return]


def pairs(network: nn.Module, groups: int = 2) -> list[tuple[str, str, int]]:
    return [(c.parent, c.child, c.positions) for c in connections(network, EXAMPLE, groups)]


def test_layers_in_sequence_are_connected_through_flattening() -> None:
    assert pairs(sequential_network()) == [("0", "4", 1), ("4", "7", 4), ("7", "9", 1)]
    (first, second, third) = connections(sequential_network(), EXAMPLE, 4)
    assert (first.inputs, first.outputs) == ((2, 1, 1, 1), (2, 2, 1, 1))
    assert (second.inputs, third.inputs, third.outputs) == ((2, 2, 1, 1), (2, 2, 2, 2), (1, 1, 1))
    assert float(second.sizes.sum()) == 24 * 8


def test_sums_and_concatenations_are_exempt() -> None:
    assert pairs(Joined()) == [("after", "twice", 1), ("twice", "one", 1), ("twice", "other", 1)]
    assert pairs(ImageNetStyle()) == [("layer1.0.conv1", "layer1.0.conv2", 1), ("layer2.0.conv1", "layer2.0.conv2", 1)]
    assert pairs(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))) == []


def test_columns_in_another_order_are_exempt() -> None:
    """Channels-last flattening: the columns of a unit do not follow each other."""

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.movedim(1, -1).flatten(1)

    assert pairs(nn.Sequential(nn.Conv2d(1, 4, 3), Last(), nn.Linear(144, 3))) == []


def test_groups_are_of_almost_equal_size() -> None:
    assert group_sizes(500, 20) == (25,) * 20
    assert group_sizes(7, 3) == (3, 2, 2)
    assert group_sizes(3, 20) == (1, 1, 1)


def test_activations_of_both_layers_belong_to_the_same_samples() -> None:
    network = sequential_network()
    network[1].running_mean += 0.3  # type: ignore[operator]
    connected = connections(network, EXAMPLE, 2)
    network.train()
    values = activations(network, connected, EXAMPLE.split(2))
    assert network.training
    network.eval()
    with torch.no_grad():
        first = network[0](EXAMPLE)
        second = network[4](network[1:4](first))
        hidden = network[5:9](second)
        expected = {"0": first.mean((2, 3)), "4": second.mean((2, 3)), "7": hidden, "9": network[9](hidden)}
    assert values.keys() == expected.keys()
    for layer, groups in values.items():
        assert len(groups) == 2
        torch.testing.assert_close(torch.cat(list(groups), 1), expected[layer], msg=layer)


def test_magnitudes_are_means_over_groups_of_weights() -> None:
    network = sequential_network()
    _, second, _ = connections(network, EXAMPLE, 2)
    scores = magnitudes(network, second)
    weight = network.get_parameter("7.weight").detach().double().abs()
    assert scores.shape == (2, 2)
    assert float(scores[0, 1]) == pytest.approx(float(weight[:4, 12:].mean()))
    assert float(scores[1, 0]) == pytest.approx(float(weight[4:, :12].mean()))


def with_cuts(network: nn.Module) -> list[Connection]:
    """The second group of layer 4 is read by nothing, nor is the first one of layer 0 then."""
    first, second, third = connections(network, EXAMPLE, 2)
    return [
        replace(first, keep=torch.tensor([[False, True], [True, False]])),
        replace(second, keep=torch.tensor([[True, False], [True, False]])),
        replace(third, keep=torch.tensor([[False, True], [True, True]])),
    ]


def test_cut_weights_are_zero_and_counted() -> None:
    model, dense = Tapped(sequential_network()), sequential_network()
    cut(model, EXAMPLE, with_cuts(model.module))
    assert (model.module.get_parameter("7.weight")[:, 12:] == 0).all()
    assert (model.module.get_parameter("7.weight")[:, :12] != 0).all()
    assert (model.module.get_parameter("9.weight")[:2, :4] == 0).all()
    zeros = {"0": 0, "4": 3 * 3 * 9 + 3 * 2 * 9, "7": 8 * 12, "9": 2 * 4}
    noted = sparsity(model.module, dense)
    total = sum(parameter.numel() for parameter in dense.parameters())
    assert noted["sparsity"] == pytest.approx(sum(zeros.values()) / total)
    for layer, count in zeros.items():
        size = dense.get_parameter(f"{layer}.weight").numel()
        assert noted["layer_sparsity"][layer] == pytest.approx(count / size)


def test_unread_units_are_removed_and_the_function_is_the_same() -> None:
    masked, smaller = Tapped(sequential_network()), Tapped(sequential_network())
    connected = with_cuts(masked.module)
    cut(masked, EXAMPLE, connected)
    cut(smaller, EXAMPLE, connected, remove=True)
    sizes = {name: tuple(p.shape) for name, p in smaller.module.named_parameters() if p.ndim > 1}
    assert sizes == {"0.weight": (2, 1, 3, 3), "4.weight": (3, 2, 3, 3), "7.weight": (8, 12), "9.weight": (3, 8)}
    for model in (masked, smaller):
        model.eval()
    torch.testing.assert_close(smaller(EXAMPLE), masked(EXAMPLE))
    assert (
        sparsity(smaller.module, sequential_network())["sparsity"]
        > sparsity(masked.module, sequential_network())["sparsity"]
    )
    rebuilt = reapply(sequential_network(), applied_operations(smaller.module), EXAMPLE)
    rebuilt.load_state_dict(smaller.module.state_dict())
    assert torch.equal(rebuilt.eval()(EXAMPLE), smaller(EXAMPLE))


def test_units_that_another_layer_reads_remain() -> None:
    network = Joined()
    connected = connections(network, EXAMPLE, 2)
    cuts = [replace(c, keep=torch.tensor([[c.child == "one", True]] * len(c.outputs))) for c in connected[1:]]
    before = copy.deepcopy(network)
    assert remove_unread(network, EXAMPLE, cuts) == cuts
    assert remove_unread(network, EXAMPLE, cuts[1:]) == cuts[1:]  # the other reader is exempt
    assert all(p.shape == q.shape for p, q in zip(network.parameters(), before.parameters(), strict=True))
