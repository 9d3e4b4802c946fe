"""Connections between adjacent layers of a network, in groups of units, and the activations of both layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.groups import MIN_UNITS, drop, group_of
from tutelage.models.groups import groups as groups_of_units
from tutelage.models.modes import eval_mode
from tutelage.models.surgery.mask import maskable


@dataclass(frozen=True)
class Connection:
    """The weights by which a layer reads the units of another one, in groups.

    Attributes:
        parent, child: the names of the two layers.
        inputs: the sizes of the groups of the parent's units, which follow each other.
        outputs: likewise of the child's.
        positions: the number of the child's inputs for each unit of the parent: several if maps are flattened.
        keep: (outputs, inputs) bool, False for the groups of weights that are 0.
    """

    parent: str
    child: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    positions: int
    keep: Tensor

    @property
    def sizes(self) -> Tensor:
        """The number of weights in each group, (outputs, inputs) float64, without the size of the kernel."""
        outputs, inputs = torch.tensor(self.outputs).double(), torch.tensor(self.inputs).double()
        return outputs[:, None] * inputs * self.positions

    def settings(self) -> dict[str, Any]:
        """The settings of the operation ``mask``."""
        inputs = [size * self.positions for size in self.inputs]
        keep = self.keep.flatten().int().tolist()
        return {"layer": self.child, "outputs": list(self.outputs), "inputs": inputs, "keep": keep}


def group_sizes(units: int, groups: int) -> tuple[int, ...]:
    """Sizes of groups of almost equal size, no more of them than units."""
    return tuple(len(part) for part in torch.arange(units).tensor_split(min(groups, units)))


def connections(network: nn.Module, example: Tensor, groups: int) -> list[Connection]:
    """All connections of two layers of which the second reads nothing else than the first one, each unit separately.

    The layers are convolutions of one group and linear layers. A layer that reads a sum, several layers side by side,
    or the network's input has no connection.

    Args:
        network: inputs to logits; it is not changed.
        example: inputs as the network takes them, (B, ...).
        groups: the number of groups of a layer.
    """
    connected = []
    for group in groups_of_units(network, example):
        parent, *coupled = group.layers
        if coupled:
            continue
        for child, columns in group.consumers.items():
            weight = network.get_parameter(f"{child}.weight")
            # The operation ``mask`` takes groups of inputs that follow each other.
            if maskable(network.get_submodule(child)) and columns.flatten().tolist() == list(range(weight.shape[1])):
                inputs, outputs = group_sizes(group.units, groups), group_sizes(len(weight), groups)
                keep = torch.ones(len(outputs), len(inputs), dtype=torch.bool)
                connected.append(Connection(parent, child, inputs, outputs, columns.shape[1], keep))
    return connected


def activations(
    network: nn.Module, connected: Sequence[Connection], batches: Iterable[Tensor]
) -> dict[str, Sequence[Tensor]]:
    """The activations of each group of units of the connected layers, on the same samples.

    A convolution's are its outputs, averaged over the positions. A linear layer's are those that its first child
    receives, after the non-linearity, or its outputs if it has no child.

    Args:
        network: it runs in eval mode, without gradients.
        connected: its connections.
        batches: inputs as the network takes them, each (B, ...).

    Returns:
        By the name of the layer, a (samples, units) tensor for each group, float32 on the CPU.
    """
    calls: dict[str, list[Tensor]] = {}  # of a layer for the current batch
    values: dict[str, list[Tensor]] = {}

    def store(layer: str, tensor: Tensor, axis: int) -> None:
        units = tensor.movedim(axis, -1).flatten(1, -2) if tensor.ndim > 2 else tensor[:, None]
        calls.setdefault(layer, []).append(units.float().mean(1).cpu())

    def outputs_of(layer: str) -> Any:
        return lambda module, _inputs, output: store(layer, output, 1 if isinstance(module, nn.Conv2d) else -1)

    def inputs_of(layer: str, positions: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axis = 1 if isinstance(module, nn.Conv2d) else -1
            units = inputs[0].movedim(axis, -1)
            store(layer, units.reshape(*units.shape[:-1], -1, positions).mean(-1), -1)

        return hook

    groups = {c.child: c.outputs for c in connected} | {c.parent: c.inputs for c in connected}
    handles = []
    for layer in groups:
        child = next((c for c in connected if c.parent == layer), None)
        module = network.get_submodule(layer)
        if child is None or isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(outputs_of(layer)))
        else:
            hook = inputs_of(layer, child.positions)
            handles.append(network.get_submodule(child.child).register_forward_pre_hook(hook))
    try:
        with eval_mode(network), torch.no_grad():
            for batch in batches:
                network(batch)
                for layer in groups:
                    values.setdefault(layer, []).append(torch.stack(calls.pop(layer)).mean(0))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.split(torch.cat(values[layer]), list(sizes), 1) for layer, sizes in groups.items()}


def remove_unread(network: nn.Module, example: Tensor, connected: Sequence[Connection]) -> list[Connection]:
    """Remove groups of units that no layer reads from a network, which is changed; return the remaining connections.

    At least two units of each layer remain.
    """
    left = list(connected)
    for parent in reversed(dict.fromkeys(connection.parent for connection in connected)):
        group = group_of(network, parent, example)
        readers = [connection for connection in left if connection.parent == parent]
        if group is None or set(group.consumers) != {connection.child for connection in readers}:
            continue
        is_read = torch.stack([connection.keep.any(0) for connection in readers]).any(0)
        sizes = torch.tensor(readers[0].inputs)
        if bool(is_read.all()) or int(sizes[is_read].sum()) < MIN_UNITS:
            continue
        unread_units = (~is_read).repeat_interleave(sizes).nonzero().squeeze(1)
        drop(network, group, unread_units.tolist())
        remaining = tuple(sizes[is_read].tolist())
        for number, connection in enumerate(left):
            if connection.parent == parent:
                left[number] = replace(connection, inputs=remaining, keep=connection.keep[:, is_read])
            elif connection.child == parent:
                left[number] = replace(connection, outputs=remaining, keep=connection.keep[is_read])
    return left
