"""MaxDropout layers that are inserted into a network temporarily."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.methods.maxdropout.layer import MaxDropout, after_stages, dominant, max_dropout, replace_dropout
from tutelage.models.tapped import Tapped

HALF = partial(MaxDropout, 0.5)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Wrapping(nn.Module):
    """A block that returns its map inside a container."""

    def __init__(self, kind: str, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(inside, outside, 3, stride, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.conv(x))
        return {
            "tuple": (y, None),
            "list": [y, y],
            "named": Pair(y, y),
            "mapping": {"map": y, "more": 1},
            "nested": ((y,),),
        }[self.kind]


class Unwrapping(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, Wrapping(kind, 1, 3, 1), Wrapping(kind, 3, 4, 2)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.first(self.b(self.first(self.a(x)))).mean((2, 3)))
        return logits

    def first(self, container: Any) -> Tensor:
        result: Tensor = {
            "tuple": lambda: container[0],
            "list": lambda: container[0],
            "named": lambda: container.first,
            "mapping": lambda: container["map"],
            "nested": lambda: container[0][0],
        }[self.kind]()
        return result


IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def no_hooks(module: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_after_stages_equals_explicit_network(tiny_model: Callable[..., Tapped]) -> None:
    """TinyNet's stages are its two batch norms, since its ReLUs are function calls."""
    model = tiny_model().trace(IMAGES)
    net: Any = model.module
    with after_stages(model, HALF) as layers:
        assert list(layers) == ["stage1", "stage2"]
        result = model(IMAGES)
    images = (IMAGES - model.mean) / model.std
    reference = tiny_model().module
    for module in (net, reference):
        module.load_state_dict(net.state_dict())
    x = F.relu(max_dropout(reference.bn1(reference.conv1(images)), 0.5))  # type: ignore[operator]
    x = F.relu(max_dropout(reference.bn2(reference.conv2(x)), 0.5))  # type: ignore[operator]
    assert torch.equal(result, reference.fc(x.mean((2, 3))))  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["tuple", "list", "named", "mapping", "nested"])
def test_layers_with_several_outputs(kind: str) -> None:
    torch.manual_seed(1)
    model = Tapped(Unwrapping(kind), roles={"stage1": "a", "stage2": "b"})
    plain = model(IMAGES)
    with after_stages(model, HALF) as layers:
        assert not torch.equal(model(IMAGES), plain)
        assert all(layer.share > 0 for layer in layers.values())
        outputs = model.tap(IMAGES, ("stage1", "logits"))
        assert not dominant(outputs["stage1"], 0.0).any()
        assert torch.equal(model.eval()(IMAGES), plain)
    assert torch.equal(model.train()(IMAGES), plain)


def test_stage_named_by_layer_input(tiny_model: Callable[..., Tapped]) -> None:
    model = Tapped(tiny_model().module, roles={"stage1": "input:conv2"})
    with after_stages(model, HALF) as layers:
        stage = model.tap(IMAGES, ("stage1",))["stage1"]
    plain = model.tap(IMAGES, ("stage1",))["stage1"]
    assert torch.equal(stage, max_dropout(plain, 0.5))
    assert layers["stage1"].share > 0


def sequential() -> Tapped:
    body = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True)), nn.Flatten())
    return Tapped(nn.Sequential(body, nn.Linear(192, 4)), roles={"stage1": "0.0"})


def test_sequential_stage_runs_layer_once() -> None:
    model = sequential()
    with after_stages(model, HALF) as layers:
        activations = model.tap(IMAGES, ("stage1",))["stage1"]
    assert layers["stage1"].total == activations.numel()
    assert torch.equal(activations, max_dropout(model.tap(IMAGES, ("stage1",))["stage1"], 0.5))


def test_layers_follow_mode_and_copies_of_network(tiny_model: Callable[..., Tapped]) -> None:
    model = tiny_model().trace(IMAGES)
    plain = model.eval()(IMAGES)
    with after_stages(model, HALF) as layers:
        assert torch.equal(model.eval()(IMAGES), plain)
        # images do not affect each other in eval mode
        assert torch.allclose(model(IMAGES[:2]), plain[:2], atol=1e-6)
        copy_of_model = copy.deepcopy(model).train()
        copy_of_model(IMAGES)
        assert all(layer.total == 0 for layer in layers.values())
        model.train()(IMAGES)
        model.double()(IMAGES.double())
        assert all(layer.share > 0 for layer in layers.values())
        keys = model.module.state_dict().keys()
        assert model.state_dict().keys() == {f"module.{key}" for key in keys}


def test_layers_are_removed_afterwards_and_after_errors(tiny_model: Callable[..., Tapped], state_of: Any) -> None:
    for within, make in ((after_stages, tiny_model), (replace_dropout, partial(tiny_model, dropout=0.1))):
        model = make().trace(IMAGES)
        before, dropout = repr(model), model.module.drop
        inserted_layers = within(model, HALF)
        inserted_layers.__enter__()
        assert repr(model) != before
        assert not inserted_layers.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert repr(model) == before
        assert model.module.drop is dropout
        assert no_hooks(model)
        assert state_of(model).keys() == state_of(make()).keys()


def test_compiled_network_drops_units(tiny_model: Callable[..., Tapped]) -> None:
    torch.compiler.reset()
    model = tiny_model().trace(IMAGES)
    with after_stages(model, HALF):
        expected = model.tap(IMAGES, ("stage1", "logits"))
        model.compile(backend="eager")
        for roles in (("logits",), ("stage1", "logits")):
            assert torch.allclose(model.tap(IMAGES, roles)["logits"], expected["logits"], atol=1e-6)
        model.eval()
        compiled_logits = model.tap(IMAGES)["logits"]
        model.uncompile()
        assert torch.allclose(compiled_logits, model(IMAGES), atol=1e-6)
    assert torch.allclose(compiled_logits, model(IMAGES), atol=1e-6)


class TwoDropouts(nn.Module):
    """One dropout under two names, and one of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 4)
        self.first = self.second = nn.Dropout(0.5)
        self.other = nn.Dropout2d(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(F.relu(self.other(self.conv(x)))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_every_dropout_is_replaced() -> None:
    model = Tapped(TwoDropouts())
    net: Any = model.module
    dropout = net.first
    with replace_dropout(model, HALF) as layers:
        assert list(layers) == ["first", "second"]
        single_output = max_dropout(F.relu(net.conv(IMAGES)), 0.5)
        assert torch.equal(model(IMAGES), net.fc(max_dropout(single_output, 0.5).mean((2, 3))))
        model.eval()
        assert not net.first.training
    assert net.first is net.second is dropout
    assert dropout.training  # it was not part of the network when the mode changed


def test_networks_without_stages_or_dropout_are_refused(tiny_model: Callable[..., Tapped], refused: Any) -> None:
    flat = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))).trace(IMAGES)
    with refused("Sequential has no stages", "embedding", "roles=", "where=dropout"), after_stages(flat, HALF):
        pass
    with refused("Sequential has no nn.Dropout", "where=stages"), replace_dropout(flat, HALF):
        pass


def test_stage_without_tensor_output_is_refused(refused: Any) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            self.output = x
            return object()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.fc = Odd(), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.odd(x)
            logits: Tensor = self.fc(self.odd.output.flatten(1))
            return logits

    model = Tapped(Around(), roles={"stage1": "odd"})
    with after_stages(model, HALF), refused("layer odd", "'stage1'", "no tensor"):
        model(IMAGES)
