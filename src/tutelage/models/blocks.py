"""The blocks of a network: residual blocks and single layers, which run one after another."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor


def blocks(network: nn.Module, example: Tensor) -> list[str]:
    """The names of the modules that divide a network, in the order in which they run.

    The output of each block is all that the following layers read: no other tensor reaches the output of the network.
    Each weight belongs to exactly one block, and no block can be divided further. So a residual block is one block, and
    a layer outside of such blocks is one, too. Layers without weights are no blocks. A network that cannot be divided
    is one block, whose name is "".

    Args:
        network: inputs to logits; it is not changed.
        example: floating-point inputs as the network takes them, (B, ...).
    """
    cuts = _cuts(network, example)
    names = _divided(network, "", cuts)
    return sorted(names, key=list(cuts).index) if names else [""]


def _divided(module: nn.Module, name: str, cuts: dict[str, bool]) -> list[str] | None:
    """The blocks of a module: those of its children if they hold all its weights; ``None`` if it is part of a block."""
    children = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
    divided = [_divided(child, path, cuts) for path, child in children if next(child.parameters(), None) is not None]
    if divided and None not in divided and next(module.parameters(recurse=False), None) is None:
        return [block for part in divided if part for block in part]
    return [name] if cuts.get(name) else None


def _cuts(network: nn.Module, example: Tensor) -> dict[str, bool]:
    """For each module that ran: whether it ran once, with one tensor, and everything passes through its output.

    Everything passes through a tensor if the number of paths from the input to it, times the number of paths from it to
    the logits, is the number of paths from the input to the logits. The paths are those of the gradients.
    """
    names = {module: name for name, module in network.named_modules() if name}
    calls: Counter[str] = Counter()
    outputs: dict[str, Any] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = names[module]
        calls[name] += 1
        outputs[name] = output.grad_fn if isinstance(output, Tensor) and _one_tensor(inputs) else None

    handles = [module.register_forward_hook(record) for module in names]
    try:
        with eval_mode(network), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            leaf = example.detach().clone().requires_grad_()
            logits = first_tensor(network(leaf * 1))  # a network may change its input in place, but not a leaf
    finally:
        for handle in handles:
            handle.remove()
    if logits is None or logits.grad_fn is None:
        return dict.fromkeys(outputs, False)
    order = _topological(logits.grad_fn)
    to_input = _path_counts(order, leaf)
    to_logits: Counter[Any] = Counter({logits.grad_fn: 1})
    for node in order:
        for following, _ in node.next_functions:
            if following is not None:
                to_logits[following] += to_logits[node]
    total = to_input[logits.grad_fn]
    return {
        name: calls[name] == 1 and node is not None and total > 0 and to_input[node] * to_logits[node] == total
        for name, node in outputs.items()
    }


def _one_tensor(inputs: tuple[Any, ...]) -> bool:
    return len(inputs) == 1 and isinstance(inputs[0], Tensor)


def _topological(root: Any) -> list[Any]:
    """The nodes of a gradient's graph, each before those that it passes its gradient to."""
    finished: dict[Any, None] = {}
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if node in finished:
            continue
        if expanded:
            finished[node] = None
            continue
        stack.append((node, True))
        stack.extend((child, False) for child, _ in node.next_functions if child is not None and child not in finished)
    return list(reversed(finished))


def _path_counts(order: list[Any], leaf: Tensor) -> Counter[Any]:
    """The number of paths from each node to the leaf."""
    counts: Counter[Any] = Counter()
    for node in reversed(order):
        if getattr(node, "variable", None) is leaf:
            counts[node] = 1
        else:
            counts[node] = sum(counts[child] for child, _ in node.next_functions if child is not None)
    return counts
