"""The division of a network's layers into blocks, whose resources are weighted one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.models.blocks import blocks
from tutelage.models.modes import eval_mode
from tutelage.models.roles import Tap
from tutelage.models.tapped import Tapped

Partition = Literal["stages", "blocks"]
LAST = "last"  # the block of the layers after the last stage


def layer_blocks(model: Tapped, example: Tensor, by: Partition) -> dict[str, str]:
    """The name of the block of each convolution and linear layer, in the order of execution.

    Args:
        model: its roles have been found, for stages.
        example: (B, ...), inputs as ``model.module`` takes them.
        by: "stages": a layer belongs to the first stage that ends after it, those after the last stage to ``LAST``.
            "blocks": the blocks are those of ``models.blocks``, without those that have no such layer.
    """
    layers = [name for name, module in model.module.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ends = {} if by == "blocks" else {role: model.taps[role] for role in model.stages}
    first_runs, last_ends = _order(model.module, example, layers, ends)
    ordered = sorted(first_runs, key=first_runs.__getitem__)
    if by == "blocks":
        names = blocks(model.module, example)
        owners = {layer: next(name for name in names if _is_within(layer, name)) for layer in ordered}
        return {layer: name or LAST for layer, name in owners.items()}
    return {
        layer: next((role for role in ends if last_ends[role] >= first_runs[layer]), LAST if ends else "network")
        for layer in ordered
    }


def _is_within(layer: str, block: str) -> bool:
    return not block or layer == block or layer.startswith(f"{block}.")


def _order(
    network: nn.Module, example: Tensor, layers: list[str], ends: Mapping[str, Tap]
) -> tuple[dict[str, int], dict[str, int]]:
    """When each layer first returned, and when each stage was last complete, as positions in one sequence of events."""
    first_runs: dict[str, int] = {}
    last_ends: dict[str, int] = {}
    count = 0

    def event(name: str, of_layer: bool) -> Any:
        def hook(*_: Any) -> None:
            nonlocal count
            count += 1
            if of_layer:
                first_runs.setdefault(name, count)
            else:
                last_ends[name] = count

        return hook

    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(event(name, True)) for name in layers]
    for role, tap in ends.items():
        module = modules[tap.layer]
        add = module.register_forward_pre_hook if tap.of_input else module.register_forward_hook
        handles.append(add(event(role, False)))
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return first_runs, last_ends
