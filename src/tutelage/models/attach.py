"""Attaching a module to a layer of any network, without changing the network's own keys.

The module becomes a child of the layer (``fc.NAME.weight``) and runs in a forward hook. So modes, devices, copies and
weights files handle it like any other submodule.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor

Layer = TypeVar("Layer", bound=nn.Module)

FRONT = "front_"
"""How the name of a front begins (``models/surgery/front.py``)."""


def find_classifier(network: nn.Module, example: Tensor) -> str:
    """The name of the ``nn.Linear`` whose output is the network's output.

    Args:
        network: inputs to logits.
        example: inputs as the network takes them, (B, ...).

    Raises:
        TutelageError: no linear layer returns the logits.
    """
    outputs: dict[str, Tensor] = {}
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear) and name}

    def store(name: str) -> Any:
        return lambda _layer, _inputs, output: outputs.__setitem__(name, output)

    handles = [module.register_forward_hook(store(name)) for name, module in linear.items()]
    try:
        with eval_mode(network), torch.no_grad():
            logits = first_tensor(network(example))
    finally:
        for handle in handles:
            handle.remove()
    for name, output in reversed(outputs.items()):
        if logits is not None and output.shape == logits.shape and torch.equal(output, logits):
            return name
    raise TutelageError(
        f"the classifier of {type(network).__name__} was not found: none of its {len(linear)} linear layers returns "
        "the logits; give it an nn.Linear as its last layer"
    )


def get_layer(network: nn.Module, name: str, kind: type[Layer]) -> Layer:
    """The layer of this name and type.

    Raises:
        TutelageError: it is not of this type.
    """
    layer = network.get_submodule(name)
    if not isinstance(layer, kind):
        raise TutelageError(
            f"layer {name!r} of {type(network).__name__} is a {type(layer).__name__}, not a {kind.__name__}; "
            "the network has been changed"
        )
    return layer


def input_layer(network: nn.Module) -> str:
    """The name of the module that receives the network's inputs, for ``attach_before``.

    It is the network itself, ``""``, or the first layer of an ``nn.Sequential``.

    Raises:
        TutelageError: this layer is in the network twice, or there is none.
    """
    name, module = "", network
    while isinstance(module, nn.Sequential):
        if not len(module):
            raise TutelageError(f"{type(network).__name__} is empty, so nothing can be attached before its first layer")
        first = next(iter(module._modules))
        name, module = f"{name}.{first}".removeprefix("."), module.get_submodule(first)
    if sum(other is module for _, other in network.named_modules(remove_duplicate=False)) > 1:
        raise TutelageError(
            f"the first layer of {type(network).__name__}, {name!r}, is in it twice; replace one of them by a copy"
        )
    return name


def attach_after(network: nn.Module, layer: str, name: str, module: nn.Module) -> None:
    """Replace the layer's output by ``module(output)``."""
    _add_child(network, layer, name, module).register_forward_hook(_After(name))


def attach_before(network: nn.Module, layer: str, name: str, module: nn.Module) -> None:
    """Replace the layer's input by ``module(input)``."""
    _add_child(network, layer, name, module).register_forward_pre_hook(_Before(name))


def fronts_of(network: nn.Module) -> list[str]:
    """The names of the fronts in a network: modules that transform its inputs and are no layers of its own."""
    return [
        f"{layer}.{hook.name}".removeprefix(".")
        for layer, module in network.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, _Before) and hook.name.startswith(FRONT)
    ]


def attach_parallel(network: nn.Module, layer: str, name: str, module: nn.Module) -> None:
    """Run the module on the layer's input as well; its output is not used, but can be tapped."""
    _add_child(network, layer, name, module).register_forward_hook(_Parallel(name))


def detach(network: nn.Module, layer: str, name: str) -> None:
    """Remove the module and its hook from the layer."""
    parent = network.get_submodule(layer)
    for hooks in (parent._forward_hooks, parent._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "name", None) == name]:
            del hooks[key]
    delattr(parent, name)


def _add_child(network: nn.Module, layer: str, name: str, module: nn.Module) -> nn.Module:
    if layer not in dict(network.named_modules()):
        raise unknown("layer to attach to", layer, [key for key, _ in network.named_modules() if key])
    parent = network.get_submodule(layer)
    if isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise TutelageError(
            f"layer {layer!r} is a {type(parent).__name__}, which would run a new child; name a layer in it"
        )
    if hasattr(parent, name):
        text = f"layer {layer!r} of {type(network).__name__}" if layer else type(network).__name__
        raise TutelageError(f"{text} has a submodule {name!r} already")
    if "torch._dynamo" in sys.modules:  # compiled code ignores new hooks
        torch.compiler.reset()
    weight = next(parent.parameters(), None)
    parent.add_module(name, module if weight is None else module.to(weight.device))
    return parent


class _Attached:
    """A hook that looks up its module by name, so that in a copy of the layer it runs the copied module."""

    def __init__(self, name: str) -> None:
        self.name = name


class _After(_Attached):
    def __call__(self, layer: nn.Module, _inputs: Any, output: Any) -> Any:
        return layer.get_submodule(self.name)(output)


class _Before(_Attached):
    def __call__(self, layer: nn.Module, inputs: Any) -> Any:
        return (layer.get_submodule(self.name)(inputs[0]), *inputs[1:])


class _Parallel(_Attached):
    def __call__(self, layer: nn.Module, inputs: Any, _output: Any) -> None:
        layer.get_submodule(self.name)(inputs[0])
