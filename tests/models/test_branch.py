"""Branching: the shared trunk, the branches, and the release of the first branch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.branching import EXAMPLE, BranchedNetwork, Overwriting, outputs
from tests.token_network import TokenNetwork
from tutelage.models.surgery import applied_operations
from tutelage.models.surgery.branch import apply
from tutelage.models.tapped import Tapped


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
    trunk_outputs: list[Tensor] = []
    network.gate.register_forward_pre_hook(lambda _, inputs: trunk_outputs.append(inputs[0].clone()))
    network.train(training)(images)
    expected: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        expected.append((output[0] if isinstance(output, tuple) else output).clone())

    plain[0].train(training).get_submodule(at).register_forward_hook(keep)
    plain[0](images)
    torch.testing.assert_close(trunk_outputs[0], expected[0])


def test_in_place_dropout_is_independent_per_branch() -> None:
    """In eval mode, in which the network is traced, dropout does not overwrite its input."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Dropout(0.5, inplace=True), nn.Linear(30, 4))
    branched_module = apply(network, EXAMPLE, at="1", branches=3)
    trunk_outputs: list[Tensor] = []
    branched_module.gate.register_forward_pre_hook(lambda _, inputs: trunk_outputs.append(inputs[0].clone()))
    for branch in branched_module.branches:
        branch.get_submodule("3").register_forward_pre_hook(lambda _, inputs: trunk_outputs.append(inputs[0].clone()))
    images = torch.rand(6, 1, 8, 8)
    branched_module.train()(images)
    *dropout_outputs, shared = trunk_outputs
    torch.testing.assert_close(shared, network[1](images.flatten(1)))
    for output in dropout_outputs:
        torch.testing.assert_close(output, torch.where(output == 0, 0.0, 2 * shared))
        assert 0.4 < float((output == 0).float().mean()) < 0.6
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(dropout_outputs, 2))


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
    first_branch_layers = {name.removeprefix("branches.0.") for name in calls if name.startswith("branches.0.")}
    for n in (1, 2):
        actual = {name.removeprefix(f"branches.{n}.") for name in calls if name.startswith(f"branches.{n}.")}
        assert actual == {name for name in first_branch_layers if not shared(f"{name}.")}
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
    released_branch = network.release()
    assert released_branch is network.branches[0]
    assert type(released_branch) is type(plain[0])
    assert list(released_branch.state_dict()) == list(plain[0].state_dict())
    assert all(torch.equal(value, plain[0].state_dict()[key]) for key, value in released_branch.state_dict().items())
    assert [type(m) for m in released_branch.modules()] == [type(m) for m in plain[0].modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in released_branch.modules())
    assert torch.equal(released_branch.eval()(images), within)
    assert torch.equal(released_branch(images), plain[0].eval()(images))
    assert applied_operations(released_branch) == []


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
    released_branch = copied.release()
    assert not any(m._forward_hooks for m in released_branch.modules())
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
    branched_module = apply(branched_network[1][0].train(), EXAMPLE, at=branched_network[2])
    assert all(module.training for module in branched_module.modules())
    for size in (3, 1, 9):
        images = torch.rand(size, 1, 8, 8)
        torch.testing.assert_close(outputs(network.eval(), images)[0], plain[0].eval()(images))


# --- invalid layers


@pytest.mark.parametrize(
    ("make", "at", "pieces"),
    [
        (Overwriting, "twice", ("Overwriting cannot be branched at 'twice'", "runs 2 times")),
        (Overwriting, "relu", ("'relu'", "runs 3 times")),
        (TokenNetwork, "blocks", ("'blocks'", "runs 0 times", "name a layer that runs once")),
        (TokenNetwork, "blocks.7", ("unknown layer to branch at 'blocks.7'", "blocks.1")),
        (TokenNetwork, "", ("unknown layer to branch at ''",)),
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
    network = apply(TokenNetwork(), EXAMPLE, at="blocks.0", branches=2)
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
    images, roles_to_read = torch.rand(6, 1, 8, 8), ("logits", *roles)
    for _ in range(2):
        actual_outputs, expected = compiled.tap(images, roles_to_read), eager.tap(images, roles_to_read)
        for role in roles_to_read:
            torch.testing.assert_close(actual_outputs[role], expected[role])
        for values in (actual_outputs, expected):
            sum(values[role].square().sum() for role in roles_to_read).backward()  # type: ignore[union-attr]
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
