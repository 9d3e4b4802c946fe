"""A module more at a layer of any network, without changing a key of the network's own.

The module becomes a child of the layer (``fc.NAME.weight``) and runs in a forward hook, so that modes, devices, copies
and files treat it as any other part.
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


def find_classifier(network: nn.Module, example: Tensor) -> str:
    """The name of the ``nn.Linear`` that gives the network's logits.

    Args:
        network: images to logits.
        example: (B, C, H, W), images as it takes them.

    Raises:
        TutelageError: when no linear layer's output is what the network gives.
    """
    given: dict[str, Tensor] = {}
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear) and name}

    def watch(name: str) -> Any:
        return lambda _layer, _taken, output: given.__setitem__(name, output)

    handles = [module.register_forward_hook(watch(name)) for name, module in linear.items()]
    try:
        with eval_mode(network), torch.no_grad():
            logits = first_tensor(network(example))
    finally:
        for handle in handles:
            handle.remove()
    for name, output in reversed(given.items()):
        if logits is not None and output.shape == logits.shape and torch.equal(output, logits):
            return name
    raise TutelageError(
        f"the classifier of {type(network).__name__} was not found: none of its {len(linear)} linear layers gives "
        "the logits; give it an nn.Linear as its last layer"
    )


def get_layer(network: nn.Module, name: str, kind: type[Layer]) -> Layer:
    """The layer of this name.

    Raises:
        TutelageError: when it is of another kind.
    """
    layer = network.get_submodule(name)
    if not isinstance(layer, kind):
        raise TutelageError(
            f"layer {name!r} of {type(network).__name__} is a {type(layer).__name__} and no {kind.__name__}; it was "
            "changed since"
        )
    return layer


def input_layer(network: nn.Module) -> str:
    """The name of the module that is given the network's inputs as they are, fit for ``attach_before``.

    It is the network itself, ``""``, or of an ``nn.Sequential`` its first layer.

    Raises:
        TutelageError: that layer runs a second time, or there is none.
    """
    name, module = "", network
    while isinstance(module, nn.Sequential):
        if not len(module):
            raise TutelageError(f"{type(network).__name__} has no layer to put anything before")
        first = next(iter(module._modules))
        name, module = f"{name}.{first}".removeprefix("."), module.get_submodule(first)
    if sum(other is module for _, other in network.named_modules(remove_duplicate=False)) > 1:
        raise TutelageError(
            f"the first layer of {type(network).__name__}, {name!r}, is in it twice; put a copy of it in one place"
        )
    return name


def attach_after(network: nn.Module, layer: str, name: str, module: nn.Module) -> None:
    """From now on ``module(output)`` takes the place of what the layer gives."""
    _child(network, layer, name, module).register_forward_hook(_After(name))


def attach_before(network: nn.Module, layer: str, name: str, module: nn.Module) -> None:
    """From now on the layer is given ``module(input)``."""
    _child(network, layer, name, module).register_forward_pre_hook(_Before(name))


def attach_parallel(network: nn.Module, layer: str, name: str, module: nn.Module) -> None:
    """From now on the module runs on what the layer is given; its output is there to be tapped, and nothing else."""
    _child(network, layer, name, module).register_forward_hook(_Beside(name))


def detach(network: nn.Module, layer: str, name: str) -> None:
    """Take the module from the layer again, which is then as it was before."""
    at = network.get_submodule(layer)
    for hooks in (at._forward_hooks, at._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "name", None) == name]:
            del hooks[key]
    delattr(at, name)


def _child(network: nn.Module, layer: str, name: str, module: nn.Module) -> nn.Module:
    if layer not in dict(network.named_modules()):
        raise unknown("layer to attach to", layer, [known for known, _ in network.named_modules() if known])
    at = network.get_submodule(layer)
    if isinstance(at, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise TutelageError(f"layer {layer!r} is a {type(at).__name__}, which would run a child; name a layer in it")
    if hasattr(at, name):
        where = f"layer {layer!r} of {type(network).__name__}" if layer else type(network).__name__
        raise TutelageError(f"{where} has a part {name!r} already")
    if "torch._dynamo" in sys.modules:  # what was compiled for such a network does not look for new hooks
        torch.compiler.reset()
    weight = next(at.parameters(), None)
    at.add_module(name, module if weight is None else module.to(weight.device))
    return at


class _Attached:
    """A hook that finds its module by name, in whichever copy of the layer it runs."""

    def __init__(self, name: str) -> None:
        self.name = name


class _After(_Attached):
    def __call__(self, layer: nn.Module, _taken: Any, given: Any) -> Any:
        return layer.get_submodule(self.name)(given)


class _Before(_Attached):
    def __call__(self, layer: nn.Module, taken: Any) -> Any:
        return (layer.get_submodule(self.name)(taken[0]), *taken[1:])


class _Beside(_Attached):
    def __call__(self, layer: nn.Module, taken: Any, _given: Any) -> None:
        layer.get_submodule(self.name)(taken[0])
