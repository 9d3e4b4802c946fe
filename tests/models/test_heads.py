"""Heads on layers of a network, and networks of several architectures beside each other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.branching import EXAMPLE, Overwriting, sequential, zoo_network
from tests.token_network import TokenNetwork
from tutelage.methods.ffl.heads.fusion import Fusion, build
from tutelage.methods.ffl.surgery.beside import Beside
from tutelage.methods.ffl.surgery.beside import apply as put_beside
from tutelage.models.surgery import applied_operations, branch, reapply
from tutelage.models.surgery.heads import Headed, apply
from tutelage.models.tapped import Tapped

NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], list[tuple[int, ...]]]] = {
    "resnet": (zoo_network("resnet8x0.25"), ["layer1", "layer3"], [(4, 8, 8), (16, 2, 2)]),
    "tokens": (TokenNetwork, ["blocks.1"], [(8, 4, 4)]),
    "overwritten in place": (Overwriting, ["bn2", "input:conv3"], [(4, 8, 8), (4, 8, 8)]),
    "sequential": (sequential, ["0", "1.0"], [(4, 8, 8), (4, 3, 3)]),
}


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[Headed, nn.Module, list[str], list[tuple[int, ...]]]:
    """A network with a fusion of its layers, a copy without it, the layers, and the shapes of their outputs."""
    make, layers, shapes = NETWORKS[request.param]
    torch.manual_seed(1)
    network = make()
    original = copy.deepcopy(network)
    return apply(network, EXAMPLE, kind="fusion", layers=layers), original, layers, shapes


Case = tuple[Headed, nn.Module, list[str], list[tuple[int, ...]]]


@pytest.mark.parametrize("training", [False, True])
def test_head_reads_the_layers_in_one_pass(case: Case, training: bool) -> None:
    whole, original, layers, shapes = case
    images = torch.rand(3, 1, 8, 8)
    read: list[tuple[Tensor, list[Tensor]]] = []
    whole.head.register_forward_hook(lambda _, inputs, __: read.append(inputs))
    whole.train(training), original.train(training)
    output = whole(images)
    ((logits, maps),) = read
    expected = Tapped(original, roles={f"r{n}": layer for n, layer in enumerate(layers)}).tap(
        images, ("logits", *(f"r{n}" for n in range(len(layers))))
    )
    assert torch.equal(logits, expected["logits"])
    assert [tuple(values.shape[1:]) for values in maps] == shapes
    for number, values in enumerate(maps):
        assert torch.equal(values, expected[f"r{number}"])
    assert torch.equal(output, whole.head.train(False)(logits, maps)) or training
    assert output.shape == (3, 4)
    state = {name: value for name, value in whole.network.state_dict().items() if "running" in name}
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in state.items())  # it ran once


def test_gradients_reach_the_layers(case: Case) -> None:
    whole, *_ = case
    whole.train()(torch.rand(3, 1, 8, 8)).sum().backward()
    first = next(whole.network.parameters())
    assert first.grad is not None
    assert bool(first.grad.any())


def test_the_network_can_be_used_alone(case: Case) -> None:
    whole, original, *_ = case
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(whole.network.eval()(images), original.eval()(images))
    assert whole._layer_outputs == {}
    assert list(whole.network.state_dict()) == list(original.state_dict())
    released = whole.release()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in released.modules())
    assert torch.equal(released(images), original(images))


def test_a_copy_is_independent(case: Case) -> None:
    whole, *_ = case
    images = torch.rand(3, 1, 8, 8)
    expected = whole.eval()(images)
    other = copy.deepcopy(whole)
    for parameter in whole.parameters():
        parameter.data.zero_()
    assert torch.equal(other(images), expected)


def test_it_is_rebuilt_from_its_record(case: Case) -> None:
    whole, original, *_ = case
    again = reapply(original, applied_operations(whole), EXAMPLE)
    again.load_state_dict(whole.state_dict())
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(again.eval()(images), whole.eval()(images))


def test_heads_follow_branches_in_the_record() -> None:
    branched = branch.apply(zoo_network("resnet8x0.25")(), EXAMPLE, at="layer2", branches=2, combine="mean")
    layers = ["branches.0.layer3", "branches.1.layer3"]
    whole = apply(branched, EXAMPLE, kind="fusion", layers=layers)
    assert applied_operations(whole) == [
        {"operation": "branch", "at": "layer2", "branches": 2, "combine": "mean"},
        {"operation": "heads", "kind": "fusion", "layers": layers},
    ]
    again = reapply(zoo_network("resnet8x0.25")(), applied_operations(whole), EXAMPLE)
    again.load_state_dict(whole.state_dict())
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(again.eval()(images), whole.eval()(images))


def test_branches_without_a_gate_are_averaged(refused: Any) -> None:
    torch.manual_seed(0)
    others = [zoo_network("resnet8x0.25")() for _ in range(2)]
    network = zoo_network("resnet8x0.25")()
    with refused("unknown way to combine branches", "'sum'", "mean"):
        branch.apply(copy.deepcopy(network), EXAMPLE, at="layer2", combine="sum")
    branched = branch.apply(network, EXAMPLE, at="layer2", branches=3, combine="mean", others=others)
    model = Tapped(branched, roles={f"b{n}": f"branches.{n}" for n in range(3)})
    outputs = model.eval().tap(torch.rand(4, 1, 8, 8), ("logits", "b0", "b1", "b2"))
    torch.testing.assert_close(outputs["logits"], (outputs["b0"] + outputs["b1"] + outputs["b2"]) / 3)
    assert not any("gate" in name for name in branched.state_dict())


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"kind": "nothing", "layers": ["layer1"]}, ("unknown head", "nothing")),
        ({"kind": "fusion", "layers": []}, ("list of layers",)),
        ({"kind": "fusion", "layers": "layer1"}, ("list of layers", "layer1")),
        ({"kind": "fusion", "layers": ["layer9"]}, ("unknown layer", "layer9")),
        ({"kind": "fusion", "layers": ["fc"]}, ("feature maps", "(2, 4)")),
    ],
)
def test_invalid_heads_are_refused(settings: dict[str, Any], pieces: tuple[str, ...], refused: Any) -> None:
    with refused(*pieces):
        apply(zoo_network("resnet8x0.25")(), EXAMPLE, **settings)


# --- the fusion


def test_parameters_of_the_fusion_are_those_of_the_paper() -> None:
    fusion = Fusion([(64, 8, 8), (64, 8, 8)], 100)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 16_228
    assert float(fusion.depthwise.weight.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.15)
    assert float(fusion.pointwise.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.15)


@pytest.mark.parametrize("sizes", [[(8, 8), (4, 4)], [(7, 7), (4, 4)], [(5, 8), (3, 4), (8, 2)]])
def test_larger_maps_are_reduced_to_the_smallest(sizes: list[tuple[int, int]]) -> None:
    maps = [torch.randn(3, 2 + number, *size) for number, size in enumerate(sizes)]
    fusion = build(torch.zeros(3, 5), maps)
    smallest = tuple(min(side) for side in zip(*sizes, strict=True))
    for resize, values in zip(fusion.resize, maps, strict=True):
        assert resize(values).shape == (3, values.shape[1], *smallest)
    assert fusion(torch.zeros(3, 5), maps).shape == (3, 5)


# --- networks beside each other


def test_networks_beside_each_other_are_averaged_and_rebuilt() -> None:
    torch.manual_seed(0)
    beside = put_beside(zoo_network("resnet8x0.25")(), EXAMPLE, networks=["wrn-10-1", "resnet8x0.5"]).eval()
    assert isinstance(beside, Beside)
    images = torch.rand(3, 1, 8, 8)
    logits = [network(images) for network in beside.branches]
    torch.testing.assert_close(beside(images), (logits[0] + logits[1] + logits[2]) / 3)
    again = reapply(zoo_network("resnet8x0.25")(), applied_operations(beside), EXAMPLE)
    again.load_state_dict(beside.state_dict())
    assert torch.equal(again.eval()(images), beside(images))


@pytest.mark.parametrize(
    ("example", "networks", "pieces"),
    [
        (EXAMPLE, [], ("1 to 63 networks",)),
        (EXAMPLE, "wrn-10-1", ("1 to 63 networks", "wrn-10-1")),
        (EXAMPLE, ["experiments.nets:mlp32"], ("unknown model", "experiments.nets:mlp32")),
        (torch.zeros(2, 64), ["wrn-10-1"], ("network for images", "(64,)")),
    ],
)
def test_invalid_networks_are_refused(example: Tensor, networks: Any, pieces: tuple[str, ...], refused: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with refused(*pieces):
        put_beside(network, example, networks=networks)
