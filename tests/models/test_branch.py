"""Branching: the shared trunk, the branches, the gate, and the release of the first branch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.models.load import make_model
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.branch import Branched, Gate, apply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs import open_model

EXAMPLE = torch.zeros(2, 1, 8, 8)


class Mixer(nn.Module):
    """A block on tokens without attention."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.across = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Vit(nn.Module):
    """A transformer with a class token, which is a parameter outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList([Mixer(8, 17) for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class Overwriting(nn.Module):
    """An in-place ReLU shared by all layers, a layer that runs twice, and an in-place sum on the trunk's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.twice(x) + self.twice(0.5 * x)
        x = self.bn2(x)
        x += 1
        x = self.relu(x)
        x = self.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """A shared layer that returns a tuple, whose first tensor is later overwritten in place."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(x)
        first += second
        return self.fc(first.mean((2, 3)))  # type: ignore[no-any-return]


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.conv(x).chunk(2, 1)
        return first.clone(), second


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(inplace=True)),
        nn.Flatten(),
        nn.Linear(36, 4),
    )


def named(name: str) -> Callable[[], nn.Module]:
    return lambda: make_model(name, num_classes=4, input_shape=(1, 8, 8)).module


# The network, the last shared layer, and the prefixes of shared parameters.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "tokens": (Vit, "blocks.1", ("patches.", "blocks.0.", "blocks.1.", "token")),
    "overwriting": (Overwriting, "bn2", ("conv1.", "bn1.", "twice.", "bn2.")),
    "a tuple": (Pair, "both", ("both.",)),
    "sequential": (sequential, "0", ("0.",)),
    "resnet": (named("resnet8x0.25"), "layer2", ("conv1.", "bn1.", "layer1.", "layer2.")),
    "wrn": (named("wrn-10-1"), "block2", ("conv1.", "block1.", "block2.")),
    "within a block": (named("resnet8x0.25"), "layer2.0.conv1", ("conv1.", "bn1.", "layer1.", "layer2.0.conv1.")),
}

BranchedNetwork = tuple[Branched, list[nn.Module], str, Callable[[str], bool]]


@pytest.fixture(params=list(NETWORKS))
def branched_network(request: pytest.FixtureRequest) -> BranchedNetwork:
    """A network of three branches, three plain networks with one trunk, the last shared layer, the sharing rule."""
    make, at, prefixes = NETWORKS[request.param]
    torch.manual_seed(2)
    plain = [make() for _ in range(3)]

    def shared(name: str) -> bool:
        return name.startswith(prefixes)

    trunk = {name: value for name, value in plain[0].state_dict().items() if shared(name)}
    expected = copy.deepcopy(plain)
    for network in expected[1:]:
        network.load_state_dict(network.state_dict() | trunk)
    return apply(plain[0], EXAMPLE, at=at, branches=3, others=plain[1:]), expected, at, shared


def outputs(network: Branched, images: Tensor) -> list[Tensor]:
    """The logits of each branch and of the gated sum, in one pass."""
    actual_outputs: dict[str, Tensor] = {}
    handles = [
        branch.register_forward_hook(lambda _, __, output, n=n: actual_outputs.__setitem__(str(n), output))
        for n, branch in enumerate(network.branches)
    ]
    combined = network(images)
    for handle in handles:
        handle.remove()
    return [*(actual_outputs[str(n)] for n in range(len(network.branches))), combined]


@pytest.mark.parametrize("training", [True, False])
def test_each_branch_equals_a_plain_network_with_the_shared_trunk(
    branched_network: BranchedNetwork, training: bool
) -> None:
    network, plain, _, _ = branched_network
    network.train(training)
    images = torch.rand(6, 1, 8, 8)
    for _ in range(2):
        *logits, combined = outputs(network, images)
        for actual, reference in zip(logits, plain, strict=True):
            torch.testing.assert_close(actual, reference.train(training)(images))
        assert not any(torch.allclose(a, b) for a, b in itertools.combinations(logits, 2))
        assert combined.shape == (6, 4)


def test_logits_are_the_gated_sum_per_sample(branched_network: BranchedNetwork) -> None:
    network, plain, _, _ = branched_network
    gates = torch.rand(6, 3)
    network.gate.register_forward_hook(lambda *_: gates)
    images = torch.rand(6, 1, 8, 8)
    *_, combined = outputs(network.eval(), images)
    member_logits = [p.eval()(images) for p in plain]
    expected = [
        [sum(float(gates[n, i]) * member_logits[i][n, c].item() for i in range(3)) for c in range(4)] for n in range(6)
    ]
    torch.testing.assert_close(combined, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_gate_receives_the_trunk_output(branched_network: BranchedNetwork, training: bool) -> None:
    """Before it is overwritten in place."""
    network, plain, at, _ = branched_network
    images = torch.rand(6, 1, 8, 8)
    captured: list[Tensor] = []
    network.gate.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].clone()))
    network.train(training)(images)
    expected: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        expected.append((output[0] if isinstance(output, tuple) else output).clone())

    plain[0].train(training).get_submodule(at).register_forward_hook(keep)
    plain[0](images)
    torch.testing.assert_close(captured[0], expected[0])


def test_in_place_dropout_is_independent_per_branch() -> None:
    """In eval mode, in which the network is traced, dropout does not overwrite its input."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Dropout(0.5, inplace=True), nn.Linear(30, 4))
    branched = apply(network, EXAMPLE, at="1", branches=3)
    captured: list[Tensor] = []
    branched.gate.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].clone()))
    for branch in branched.branches:
        branch.get_submodule("3").register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].clone()))
    images = torch.rand(6, 1, 8, 8)
    branched.train()(images)
    *dropped, shared = captured
    torch.testing.assert_close(shared, network[1](images.flatten(1)))
    for one in dropped:
        torch.testing.assert_close(one, torch.where(one == 0, 0.0, 2 * shared))
        assert 0.4 < float((one == 0).float().mean()) < 0.6
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(dropped, 2))


def test_tracing_draws_no_random_numbers() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Dropout(0.5), nn.Linear(30, 4)).train()
    states = []
    for dropout in (0.5, 0.0):
        network[2] = nn.Dropout(dropout)
        torch.manual_seed(1)
        apply(copy.deepcopy(network), EXAMPLE, at="1")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_trunk_gradient_is_the_sum_over_branches(branched_network: BranchedNetwork) -> None:
    network, plain, _, shared = branched_network
    network.train()
    images, factors = torch.rand(6, 1, 8, 8), [torch.randn(6, 4) for _ in range(3)]
    *logits, _ = outputs(network, images)
    sum((f * z).sum() for f, z in zip(factors, logits, strict=True)).backward()  # type: ignore[union-attr]
    for factor, reference in zip(factors, plain, strict=True):
        (factor * reference.train()(images)).sum().backward()
    parameters = [dict(branch.named_parameters()) for branch in network.branches]
    for name in dict(plain[0].named_parameters()):
        gradients = [p.get_parameter(name).grad for p in plain]
        assert all(gradient is not None for gradient in gradients)
        if shared(name):
            total = sum(gradient for gradient in gradients if gradient is not None)
            torch.testing.assert_close(parameters[0][name].grad, total, rtol=1e-3, atol=1e-4)
            assert all(name not in others or others[name] is parameters[0][name] for others in parameters[1:])
        else:
            for actual, gradient in zip(parameters, gradients, strict=True):
                torch.testing.assert_close(actual[name].grad, gradient, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in network.gate.parameters())  # the gate was not used


def test_all_parameters_get_gradients_from_the_gated_sum(branched_network: BranchedNetwork) -> None:
    network = branched_network[0].train()
    network(torch.rand(6, 1, 8, 8)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
    assert all(any(bool(p.grad.any()) for p in part.parameters()) for part in (*network.branches, network.gate))


def test_the_trunk_gets_gradients_through_the_gate(branched_network: BranchedNetwork) -> None:
    """With detached logits, the trunk gets gradients only through the gate."""
    network, _, _, shared = branched_network
    for branch in network.branches:
        branch.register_forward_hook(lambda _, __, output: output.detach())
    network.train()(torch.rand(6, 1, 8, 8)).square().sum().backward()
    trunk = [p.grad for name, p in network.branches[0].named_parameters() if shared(name) and name != "token"]
    assert all(gradient is not None for gradient in trunk)
    assert any(bool(gradient.any()) for gradient in trunk if gradient is not None)


def test_the_trunk_runs_once_and_updates_its_statistics_once(branched_network: BranchedNetwork) -> None:
    network, plain, _, shared = branched_network
    calls: dict[str, int] = {}
    for name, module in network.named_modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    images = torch.rand(6, 1, 8, 8)
    network.train()(images)
    for reference in plain:
        reference.train()(images)
    runs = {name: 2 if name.endswith("twice") else 1 for name in calls}
    assert calls == runs
    firsts = {name.removeprefix("branches.0.") for name in calls if name.startswith("branches.0.")}
    for n in (1, 2):
        actual = {name.removeprefix(f"branches.{n}.") for name in calls if name.startswith(f"branches.{n}.")}
        assert actual == {name for name in firsts if not shared(f"{name}.")}
    # The running statistics equal those of the plain networks.
    for n, reference in enumerate(plain):
        branch_state, state = network.branches[n].state_dict(), reference.state_dict()
        for key in (key for key in state if "running" in key or "tracked" in key):
            if key in branch_state:
                torch.testing.assert_close(branch_state[key], state[key])
            else:
                assert n > 0
                assert shared(key)


def test_the_first_branch_keeps_its_layers_and_keys(branched_network: BranchedNetwork) -> None:
    network, plain, _, shared = branched_network
    assert list(network.branches[0].state_dict()) == list(plain[0].state_dict())
    for branch, reference in zip(list(network.branches)[1:], plain[1:], strict=True):
        expected = {key for key in reference.state_dict() if not shared(key) or key == "token"}
        assert set(branch.state_dict()) == expected


def test_the_released_branch_is_a_plain_network(branched_network: BranchedNetwork) -> None:
    network, plain, _, _ = branched_network
    images = torch.rand(6, 1, 8, 8)
    network.train()(images)
    plain[0].train()(images)
    within = outputs(network.eval(), images)[0]
    alone = network.release()
    assert alone is network.branches[0]
    assert type(alone) is type(plain[0])
    assert list(alone.state_dict()) == list(plain[0].state_dict())
    assert all(torch.equal(value, plain[0].state_dict()[key]) for key, value in alone.state_dict().items())
    assert [type(m) for m in alone.modules()] == [type(m) for m in plain[0].modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in alone.modules())
    assert torch.equal(alone.eval()(images), within)
    assert torch.equal(alone(images), plain[0].eval()(images))
    assert applied_operations(alone) == []


def test_running_the_first_branch_alone_has_no_side_effects(branched_network: BranchedNetwork) -> None:
    """It is evaluated alone during training; nothing is stored in that pass."""
    network, plain, _, _ = branched_network
    network.eval()
    images = torch.rand(6, 1, 8, 8)
    before = network(images)
    assert torch.equal(network.branches[0](images[:3]), plain[0].eval()(images[:3]))
    assert torch.equal(network(images), before)
    assert network._trunk_outputs == {}


def test_a_deep_copy_is_independent(branched_network: BranchedNetwork) -> None:
    network = branched_network[0].eval()
    images = torch.rand(6, 1, 8, 8)
    expected = network(images)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(images), expected)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(copied(images), expected)
    assert not torch.equal(network(images), expected)
    alone = copied.release()
    assert not any(m._forward_hooks for m in alone.modules())
    assert any(m._forward_hooks for m in network.branches[0].modules())


def test_the_network_works_after_an_error(branched_network: BranchedNetwork) -> None:
    network = branched_network[0].eval()
    images = torch.rand(6, 1, 8, 8)
    expected = network(images)
    with pytest.raises(RuntimeError):
        network(torch.rand(2, 3, 8, 8))
    assert torch.equal(network(images), expected)


def test_other_batch_sizes_and_modes_after_tracing(branched_network: BranchedNetwork) -> None:
    network, plain, _, _ = branched_network
    assert all(module.training for module in network.modules())
    network.branches[1].eval()
    branched = apply(branched_network[1][0].train(), EXAMPLE, at=branched_network[2])
    assert all(module.training for module in branched.modules())
    for size in (3, 1, 9):
        images = torch.rand(size, 1, 8, 8)
        torch.testing.assert_close(outputs(network.eval(), images)[0], plain[0].eval()(images))


# --- rebuilt from a file


def test_it_is_rebuilt_from_its_recorded_operations(branched_network: BranchedNetwork) -> None:
    network, plain, at, _ = branched_network
    assert applied_operations(network) == [{"operation": "branch", "at": at, "branches": 3}]
    operations = applied_operations(network)
    rebuilt = reapply(copy.deepcopy(plain[1]), operations, EXAMPLE)
    assert operations == applied_operations(network) == applied_operations(rebuilt)
    assert list(rebuilt.state_dict()) == list(network.state_dict())
    rebuilt.load_state_dict(network.state_dict())
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))


def test_a_plain_network_has_no_operations() -> None:
    network = sequential()
    assert applied_operations(network) == []
    assert reapply(network, [], EXAMPLE) is network


PLAIN: dict[str, Any] = {"operation": "branch", "at": "layer1", "branches": 2}
INVALID_OPERATIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an unknown operation": ([{"operation": "brnch"}], ("unknown operation", "'brnch'", "did you mean 'branch'?")),
    "a module of python": ([{"operation": "os"}], ("unknown operation", "'os'")),
    "this folder": ([{"operation": "__init__"}], ("unknown operation",)),
    "a path": ([{"operation": "../load"}], ("unknown operation",)),
    "no operation": ([{"at": "layer1"}], ("unknown operation", "''")),
    "a list for a name": ([{"operation": ["branch"]}], ("unknown operation",)),
    "no list": ({"operation": "branch"}, ("surgery", "expected a list")),
    "text": ("branch", ("surgery", "expected a list")),
    "null": (None, ("surgery", "expected a list")),
    "a list of texts": (["branch"], ("surgery", "expected a list")),
    "no layer": ([{"operation": "branch"}], ("'branch' cannot be repeated", "at")),
    "an unknown layer": ([PLAIN | {"at": "layer9"}], ("unknown layer", "'layer9'")),
    "no name of a layer": ([PLAIN | {"at": ""}], ("unknown layer",)),
    "a number for a layer": ([PLAIN | {"at": 5}], ("'branch' cannot be repeated",)),
    "null for a layer": ([PLAIN | {"at": None}], ("'branch' cannot be repeated", "'at' is None")),
    "a list for a layer": ([PLAIN | {"at": ["layer1"]}], ("'branch' cannot be repeated", "list")),
    "a layer that does not run": ([PLAIN | {"at": "fc.nothing"}], ("unknown layer",)),
    "very many branches": ([PLAIN | {"branches": 10**12}], ("2 to 64 branches",)),
    "one branch": ([PLAIN | {"branches": 1}], ("2 to 64 branches, got 1",)),
    "minus one branch": ([PLAIN | {"branches": -1}], ("2 to 64 branches, got -1",)),
    "half a branch": ([PLAIN | {"branches": 2.5}], ("'branch' cannot be repeated",)),
    "text for a number": ([PLAIN | {"branches": "2"}], ("'branch' cannot be repeated",)),
    "true for a number": ([PLAIN | {"branches": True}], ("2 to 64 branches",)),
    "an unknown setting": ([PLAIN | {"run": "rm"}], ("'branch' cannot be repeated", "run")),
    "a setting of two lines": ([PLAIN | {"a\nb": "rm"}], ("'branch' cannot be repeated",)),
    "networks of text": ([PLAIN | {"others": ["x"]}], ("'branch' cannot be repeated", "'others'", "networks")),
    "no networks": ([PLAIN | {"others": []}], ("'branch' cannot be repeated", "'others'", "networks")),
    "a number of networks": ([PLAIN | {"others": 3}], ("'branch' cannot be repeated",)),
    "the network itself": ([PLAIN | {"network": "x"}], ("'branch' cannot be repeated", "network")),
    "branches of branches": ([PLAIN, PLAIN | {"at": "branches.0.layer1"}], ("has branches already",)),
    "other branches than it has": ([PLAIN | {"branches": 4}], ("weights", "lacks")),
}


@pytest.mark.parametrize(("surgery", "pieces"), INVALID_OPERATIONS.values(), ids=list(INVALID_OPERATIONS))
def test_invalid_operations_in_a_file_raise(
    surgery: Any, pieces: tuple[str, ...], tiny_data: Data, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    module = named("resnet8x0.25")()
    network = apply(module, EXAMPLE, at="layer1", branches=2)
    save_weights(tmp_path / "w.safetensors", network, {"surgery": surgery})
    with refused(*pieces):
        open_model(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", tiny_data)


def test_a_file_with_operations_is_opened(tiny_data: Data, tmp_path: Path) -> None:
    network = apply(named("resnet8x0.25")(), EXAMPLE, at="layer1", branches=2).eval()
    save_weights(tmp_path / "w.safetensors", network, {"surgery": [PLAIN], "mean": [0.0], "std": [1.0]})
    opened = open_model(f"resnet8x0.25@{tmp_path / 'w.safetensors'}", tiny_data).eval()
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(opened(images), network(images))


# --- the gate


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
    normed = (z - z.mean(0)) / (z.var(0, unbiased=False) + gate.norm.eps).sqrt()
    normed = normed * gate.norm.weight.double() + gate.norm.bias.double()
    exponentials = torch.where(normed > 0, normed, 0.0).exp()
    expected = (exponentials / exponentials.sum(1, keepdim=True)).float()
    assert (normed < 0).any()
    for shared in (pooled, maps, maps.flatten(2).transpose(1, 2)):
        torch.testing.assert_close(gate(shared), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branches", [2, 3, 5])
def test_gate_weights_are_uniform_if_no_activation_is_positive(branches: int) -> None:
    gate = Gate(4, branches)
    gate.norm.bias.data.fill_(-50)
    expected = torch.full((6, branches), 1 / branches)
    assert torch.equal(gate.train()(torch.randn(6, 4)), expected)
    assert torch.equal(gate.eval()(torch.randn(6, 4)), expected)


# --- what cannot be branched


@pytest.mark.parametrize(
    ("make", "at", "pieces"),
    [
        (Overwriting, "twice", ("Overwriting cannot be branched at 'twice'", "runs 2 times")),
        (Overwriting, "relu", ("'relu'", "runs 3 times")),
        (Vit, "blocks", ("'blocks'", "runs 0 times", "name a layer that runs once")),
        (Vit, "blocks.7", ("unknown layer to branch at 'blocks.7'", "blocks.1")),
        (Vit, "", ("unknown layer to branch at ''",)),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            "0",
            ("has no parameters up to '0'", "branch at a later layer"),
        ),
    ],
)
def test_layers_that_cannot_be_branched_raise(
    make: Callable[[], nn.Module], at: str, pieces: tuple[str, ...], refused: Callable[..., Any]
) -> None:
    with refused(*pieces):
        apply(make(), EXAMPLE, at=at)


def test_branching_a_branched_network_raises(refused: Callable[..., Any]) -> None:
    network = apply(Vit(), EXAMPLE, at="blocks.0", branches=2)
    with refused("Branched has branches already"):
        apply(network, EXAMPLE, at="branches.0.blocks.1")
    with refused("Sequential has branches already"):
        apply(nn.Sequential(network), EXAMPLE, at="0.branches.0.blocks.1")


# --- compiled


@pytest.mark.parametrize("training", [True, False])
def test_compiled_outputs_equal_eager_outputs(training: bool) -> None:
    """With Dynamo only, which needs no C++ compiler."""
    torch.manual_seed(0)
    roles = {f"branch{n}": f"branches.{n}" for n in range(3)}
    networks = [Overwriting() for _ in range(3)]
    network = apply(networks[0], EXAMPLE, at="bn2", branches=3, others=networks[1:]).train(training)
    eager, compiled = (Tapped(copy.deepcopy(network), roles=roles) for _ in range(2))
    compiled.compile(backend="eager")
    images, requested = torch.rand(6, 1, 8, 8), ("logits", *roles)
    for _ in range(2):
        actual_outputs, expected = compiled.tap(images, requested), eager.tap(images, requested)
        for role in requested:
            torch.testing.assert_close(actual_outputs[role], expected[role])
        for values in (actual_outputs, expected):
            sum(values[role].square().sum() for role in requested).backward()  # type: ignore[union-attr]
        for actual, reference in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, reference.grad, rtol=1e-4, atol=1e-5)
        for actual_buffer, expected_buffer in zip(compiled.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(actual_buffer, expected_buffer)
    compiled.uncompile()


def test_replaced_layers_have_the_attributes_of_the_original() -> None:
    class ReadsAttributes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential()
            self.stem.add_module("projection", nn.Conv2d(1, 3, 3))
            self.body = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.to(self.stem.projection.weight.dtype)  # type: ignore[arg-type, union-attr]
            y: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
            return y

    network = apply(ReadsAttributes(), torch.rand(2, 1, 8, 8), at="stem")
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 2)
    assert copy.deepcopy(network)(torch.rand(2, 1, 8, 8)).shape == (2, 2)
