"""The shortcut of a unit: what remains of a residual block or a dense layer without its layers.

A unit is traced with its submodules as single steps, so a shortcut that is code of ``forward`` (a slice with padding)
is found as well as one that is a module.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from tutelage.models.modes import restore_state
from tutelage.models.outputs import first_tensor
from tutelage.models.random_state import seeded
from tutelage.models.steps import trace_steps

_SUMS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONCATENATIONS: set[Any] = {torch.cat, torch.concat, torch.concatenate}


class Shortcut(nn.Module):
    """The remaining steps of a unit, with the unit's own submodules under their names."""

    def __init__(self, unit: nn.Module, graph: fx.Graph) -> None:
        super().__init__()
        steps = fx.GraphModule(unit, graph)  # it has only the submodules of the graph, but its copies have no hooks
        self._modules.update(steps._modules)
        self._parameters.update(steps._parameters)
        self._buffers.update(steps._buffers)
        self._steps = type(steps).forward

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the unit's output without its branch."""
        output: Tensor = self._steps(self, x)
        return output


class Zeros(nn.Module):
    """(B, channels, ...) zeros of the resolution of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, inputs: Any) -> Tensor:
        """(B, C, ...), or a list that begins with it, to (B, channels, ...)."""
        x = first_tensor(inputs)
        if x is None:
            raise TypeError("the input holds no tensor whose resolution zeros could have")
        return zeros_beside(x, self.channels)


class Unchanged(nn.Module):
    """Returns its input, or a copy where a later layer would overwrite it."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same."""
        return x.clone() if self.copies else x


def zeros_beside(x: Tensor, channels: int) -> Tensor:
    """(B, channels, ...) zeros for x (B, C, ...)."""
    return x.new_zeros(x.shape[0], channels, *x.shape[2:])


@torch.no_grad()
def shortcut_of(unit: nn.Module, x: Tensor, *, copies: bool) -> Shortcut | None:
    """A unit without its residual branch, or with zeros as its new channels; ``None`` if it has no such form.

    In the first form the output is a sum of two paths from the input, followed at most by layers without weight
    matrices, such as an activation. The path with fewer weight matrices is the shortcut. If it is such a sum itself, as
    in a transformer's block, the same applies to it. In the second form the output concatenates the input with another
    path. The result is compared with the unit in which zeros stand for the outputs of the removed paths.

    Args:
        unit: a module of one input; it is not changed, and its submodules become those of the result.
        x: an input (B, ...); it is not changed.
        copies: whether a later layer overwrites the unit's output.
    """
    with restore_state(unit):
        unit.eval()
        try:
            graph, removed = _without_paths(unit, x, copies)
            # Code that reads the mode or the batch size would otherwise have the values of this pass forever.
            other, _ = _without_paths(unit, torch.cat([x, x[:1]]), copies, training=True)
            original = fx.GraphModule(unit, trace_steps(unit, x)[0])
        except Exception:  # no such form, or the unit's own code
            return None
        if graph.python_code("self").src != other.python_code("self").src:
            return None
        shortcut = Shortcut(unit, graph)
        output, result = _run(unit, x), _run(shortcut, x)
        expected = _run(_WithZeros(original, removed).run, x)
        exact = torch.equal(_run(original, x), output) and torch.equal(result, expected)
    if not exact or result.shape != output.shape:
        return None
    shortcut.training = unit.training
    return shortcut


def _run(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with seeded(0):
        return function(x.clone())


def _without_paths(unit: nn.Module, x: Tensor, copies: bool, training: bool = False) -> tuple[fx.Graph, set[str]]:
    """The graph of the shortcut, and the names of the removed nodes whose outputs are replaced by zeros.

    Raises:
        ValueError: the unit is not of this form.
    """
    unit.training = training
    with seeded(0):
        graph, values = trace_steps(unit, x.clone())
    _fix_numbers(unit, graph, values)
    source = next(node for node in graph.nodes if node.op == "placeholder")
    (node,) = next(node.args for node in graph.nodes if node.op == "output")
    removed, sums, following = set[str](), list[tuple[fx.Node, fx.Node]](), False
    while isinstance(node, fx.Node) and node is not source:
        inputs = [other for other in node.all_input_nodes if source in _before(other)]
        if node.target in _SUMS and len(inputs) == 2 and not node.kwargs:
            short, long = sorted(inputs, key=lambda other: _matrices(unit, other))
            if _matrices(unit, short) == _matrices(unit, long):
                break
            sums.append((node, short))
            removed.add(long.name)
            node = short
        elif not sums and node.target in CONCATENATIONS and source in inputs and len(inputs) == 2:
            new = next(other for other in inputs if other is not source)
            if _matrices(unit, new):
                with graph.inserting_before(node):
                    zeros = graph.call_function(zeros_beside, (source, int(values[new].shape[1])))
                node.replace_input_with(new, zeros)
                removed.add(new.name)
            break
        elif len(inputs) == 1 and not _has_matrix(unit, node):
            following = following or not sums
            (node,) = inputs
        else:
            break
    if not removed:
        raise ValueError("the unit has no path beside its layers")
    for total, short in sums:
        total.replace_all_uses_with(short)
    if sums and not _matrices(unit, sums[-1][1]) and (copies or following):
        # What follows may overwrite the unit's input, from which the sum separated it.
        last = sums[-1][1]
        with graph.inserting_after(last):
            copy = graph.call_method("clone", (last,))
        last.replace_all_uses_with(copy, lambda user: user is not copy)
    graph.eliminate_dead_code(lambda other: other.op in ("placeholder", "output"))
    graph.lint()
    return graph, removed


def _fix_numbers(unit: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
    """Make sizes that are computed from layers with matrices constants, since these layers may be removed."""
    sizes = {
        node: value
        for node, value in values.items()
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)) and _matrices(unit, node)
    }
    for node in graph.nodes:
        node.args = fx.node.map_arg(node.args, lambda other: sizes.get(other, other))
        node.kwargs = fx.node.map_arg(node.kwargs, lambda other: sizes.get(other, other))


class _WithZeros(fx.Interpreter):
    """Runs a graph with zeros as the outputs of some nodes."""

    def __init__(self, module: fx.GraphModule, removed: set[str]) -> None:
        super().__init__(module)
        self.removed = removed

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        return torch.zeros_like(output) if n.name in self.removed else output


def _before(node: fx.Node) -> set[fx.Node]:
    """A node and all that it depends on."""
    nodes, open_nodes = {node}, [node]
    while open_nodes:
        new = set(open_nodes.pop().all_input_nodes) - nodes
        nodes |= new
        open_nodes += new
    return nodes


def _matrices(unit: nn.Module, node: fx.Node) -> int:
    """The number of steps with a weight matrix, a node's own included, on which it depends."""
    return sum(_has_matrix(unit, other) for other in _before(node))


def _has_matrix(unit: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(parameter.ndim > 1 for parameter in unit.get_submodule(str(node.target)).parameters())
    constants = [operator.attrgetter(str(n.target))(unit) for n in node.all_input_nodes if n.op == "get_attr"]
    return any(isinstance(value, Tensor) and sum(size > 1 for size in value.shape) > 1 for value in constants)
