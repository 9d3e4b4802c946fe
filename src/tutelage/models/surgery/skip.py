"""Switching off units of a network, such as residual blocks, and removing their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tutelage.errors import TutelageError, unknown
from tutelage.models.blocks import blocks
from tutelage.models.modes import eval_mode
from tutelage.models.roles import remove_missing_roles
from tutelage.models.shortcuts import CONCATENATIONS, Unchanged, Zeros, shortcut_of
from tutelage.models.surgery import append_operation
from tutelage.text import value_text


def apply(network: nn.Module, example: Tensor, *, units: Sequence[str]) -> nn.Module:
    """Switch off units; their weights are removed from the network, and the other keys do not change.

    A residual block becomes its shortcut and the activation after the sum. A dense layer, whose output is concatenated
    with others, becomes zeros of its channels. Any other unit becomes the identity if its output has the shape of its
    input. Roles of removed layers are removed.

    Args:
        network: it is changed.
        example: inputs as the network takes them, (B, ...).
        units: the names of modules, none of which is in another one.

    Raises:
        TutelageError: there is no such unit, or it cannot be switched off.
    """
    if isinstance(units, str) or not all(isinstance(name, str) for name in units):
        raise TutelageError(f"skip takes a list of units, got {value_text(units)}; give their names, as [layer1.0]")
    calls = _trace(network, example)
    replacements = {}
    for name in units:
        if name not in calls:
            raise unknown("unit to skip", name, skippable(network, example))
        if any(f"{name}.".startswith(f"{other}.") for other in units if other != name) or name in replacements:
            raise TutelageError(f"the unit {name!r} is removed twice; name it once, and no module that contains it")
        replacements[name] = _replacement(network, calls[name]) or _identity(network, calls[name])
    for name, module in replacements.items():
        network.set_submodule(name, module)
    if replacements:
        remove_missing_roles(network)
        append_operation(network, "skip", units=list(units))
    return network


def skippable(network: nn.Module, example: Tensor, *, plain: bool = False) -> list[str]:
    """The units that have a path beside their layers, in the order in which they run: residual blocks, dense layers.

    Of units inside each other the outermost counts.

    Args:
        network: it is not changed.
        example: inputs as the network takes them, (B, ...).
        plain: whether to add the other blocks (``models.blocks``) with a weight matrix whose output has the shape of
            their input; but not the last one, the classifier.
    """
    calls = _trace(network, example)
    names = set(_outermost(network, calls, ""))
    if plain:
        names |= {
            name
            for name in blocks(network, example)[:-1]
            if name in calls and calls[name].keeps_shape and _has_matrix(network.get_submodule(name))
            if not any(f"{name}.".startswith(f"{o}.") or f"{o}.".startswith(f"{name}.") for o in names)
        }
    return [name for name in calls if name in names]


def _outermost(network: nn.Module, calls: dict[str, _Call], name: str) -> Iterator[str]:
    for key, _ in network.get_submodule(name).named_children():
        child = f"{name}.{key}".removeprefix(".")
        if child in calls and _replacement(network, calls[child]) is not None:
            yield child
        else:
            yield from _outermost(network, calls, child)


@dataclass
class _Call:
    """A submodule that ran once, on an input and with an output that are tensors, or on a list of tensors."""

    name: str
    input: Any
    output: Tensor
    version: int  # of the output when the module returned
    only_concatenated: bool = False  # the output, with a part of the input

    @property
    def keeps_shape(self) -> bool:
        return isinstance(self.input, Tensor) and self.input.shape == self.output.shape

    @property
    def overwritten(self) -> bool:
        return self.output._version > self.version


def _replacement(network: nn.Module, call: _Call) -> nn.Module | None:
    """What a unit becomes by its path beside the layers; ``None`` without one."""
    unit = network.get_submodule(call.name)
    if not _has_matrix(unit) or unit._forward_hooks or unit._forward_pre_hooks:
        return None
    if call.only_concatenated:
        shape, first = call.output.shape, tree_leaves(call.input)[0].shape
        return Zeros(int(shape[1])) if (shape[0], *shape[2:]) == (first[0], *first[2:]) else None
    is_layer = type(unit).__module__.startswith("torch.nn.") and not any(True for _ in unit.children())
    if is_layer or isinstance(unit, nn.Sequential) or not isinstance(call.input, Tensor):
        return None
    return shortcut_of(unit, call.input, copies=call.overwritten)


def _has_matrix(unit: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in unit.parameters())


def _identity(network: nn.Module, call: _Call) -> nn.Module:
    if call.keeps_shape:
        return Unchanged(call.overwritten)
    raise TutelageError(
        f"unit {call.name!r} of {type(network).__name__} cannot be switched off: it has no path beside its layers, and "
        f"maps {_shape(call.input)} to {_shape(call.output)}; choose a unit that maps a shape to the same"
    )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


class _Reads(TorchFunctionMode):
    """Records which tensors are read by concatenations of channels, and which by other functions."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Any] = []  # so that no other tensor gets their identity
        self.others: set[int] = set()
        self.joined: list[set[int]] = []
        self.parts: dict[int, set[int]] = {}  # of a tensor that is a concatenation

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if leaves and any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            names = {id(leaf) for leaf in leaves}
            self.tensors += [output, *leaves]
            if function in CONCATENATIONS and (args[1:] == (1,) or kwargs == {"dim": 1}):
                self.joined.append(names)
                self.parts[id(output)] = names
            else:
                self.others |= names
        return output

    def only_joins(self, call: _Call) -> bool:
        """Whether the output is only read by concatenations, one of them with a part of the input."""
        name, inputs = id(call.output), {id(leaf) for leaf in tree_leaves(call.input)}
        inputs |= set().union(*(self.parts.get(part, set()) for part in inputs))
        return name not in self.others and any(name in names and inputs & names for names in self.joined)


def _trace(network: nn.Module, example: Tensor) -> dict[str, _Call]:
    """The submodules that run once and return a tensor, in the order in which they return."""
    runs: dict[str, list[_Call | None]] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            call, leaves = None, tree_leaves(inputs)
            plain = len(inputs) == 1 and not keywords and isinstance(output, Tensor) and output.ndim > 1
            if plain and leaves and all(isinstance(leaf, Tensor) for leaf in leaves):
                call = _Call(name, inputs[0] if isinstance(inputs[0], Tensor) else leaves, output, output._version)
            runs.setdefault(name, []).append(call)

        return hook

    modules = {name: module for name, module in network.named_modules() if name}
    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in modules.items()]
    reads = _Reads()
    try:
        with eval_mode(network), torch.no_grad(), reads:
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    calls = {name: run[0] for name, run in runs.items() if len(run) == 1 and run[0] is not None}
    for call in calls.values():
        call.only_concatenated = reads.only_joins(call)
    return calls
