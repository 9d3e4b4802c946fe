"""Heads on layers of a network, and their logits in place of the network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models import heads
from tutelage.models.capture import capture
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import first_tensor, logits_of
from tutelage.models.roles import Tap, find_roles, parse_roles
from tutelage.models.surgery import applied_operations, declare_inputs, record_operations
from tutelage.text import value_text


class Headed(nn.Module):
    """A network and a head that reads layers of it.

    The network keeps its layers and key names, under ``network``. Its layers have permanent hooks, which store their
    outputs only while the whole runs, so that the network can be used alone.

    Attributes:
        network: inputs (B, ...) to its own logits (B, classes).
        head: those logits and the outputs of the layers to logits (B, classes), as ``models/heads`` describes.
    """

    def __init__(self, network: nn.Module, head: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.network, self.head, self._taps = network, head, tuple(taps)
        declare_inputs(self, [network])
        self._layer_outputs, self._listening = dict[int, Any](), False
        self._hooks = [
            register(_Listener(self, number))
            for number, tap in enumerate(taps)
            for layer in [network.get_submodule(tap.layer)]
            for register in [layer.register_forward_pre_hook if tap.of_input else layer.register_forward_hook]
        ]

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...) to the logits of the head, (B, classes)."""
        self._listening = True
        try:
            logits = logits_of(self.network, self.network(inputs))
            maps = []
            for number, tap in enumerate(self._taps):
                if number not in self._layer_outputs:
                    raise TypeError(f"layer {tap.layer!r} of {type(self.network).__name__} did not run in this pass")
                maps.append(tap.read(f"layer {number}", self._layer_outputs[number]))
        finally:
            self._listening = False
            self._layer_outputs.clear()
        outputs: Tensor = self.head(logits, maps)
        return outputs

    def release(self) -> nn.Module:
        """The network without hooks; this module must not be used afterwards."""
        for hook in self._hooks:
            hook.remove()
        return self.network


class _Listener:
    """A hook that stores the output of a layer, or its input, while the whole network runs."""

    def __init__(self, whole: Headed, number: int) -> None:
        self.whole, self.number = [whole], number  # in a list: not a submodule's cycle

    def __call__(self, _layer: nn.Module, inputs: Any, output: Any = None) -> None:
        (whole,) = self.whole
        if not whole._listening:
            return
        tap = whole._taps[self.number]
        tensor = first_tensor(inputs if tap.of_input else output)
        whole._layer_outputs[self.number] = tensor.clone() if tap.overwritten and tensor is not None else tensor


def apply(network: nn.Module, example: Tensor, *, kind: str, layers: Sequence[str], **settings: Any) -> Headed:
    """Put a head on layers of a network; its logits become the output.

    Args:
        network: inputs to logits (B, classes); it becomes a part of the result.
        example: inputs as the network takes them, (B, ...).
        kind: a kind of head (``tutelage.models.heads``).
        layers: the names of the layers that the head reads; ``input:fc`` is the input of ``fc``. Tokens (B, N, D)
            become maps (B, D, H, W) of their patches.
        settings: of the kind: text, numbers and flat lists of these.

    Raises:
        TutelageError: there is no such kind or layer, the settings are invalid, or the head cannot read the layers.
    """
    if isinstance(layers, str) or not layers:
        raise TutelageError(f"a head reads a list of layers, got {value_text(layers)}; name at least one")
    names = [f"layer {number}" for number in range(len(layers))]
    manual = parse_roles(network, dict(zip(names, map(str, layers), strict=True)))
    roles = find_roles(network, example, manual)
    taps = {name: roles[name] for name in names}
    with eval_mode(network), torch.no_grad():
        logits, captured = capture(lambda: logits_of(network, network(example)), network, taps, stop=False)
    if logits is None:
        raise TutelageError(f"{type(network).__name__} returns no logits, which a head reads; give it a classifier")
    if absent := [taps[name].layer for name in names if name not in captured]:
        raise TutelageError(
            f"layer {absent[0]!r} of {type(network).__name__} does not run, so that a head cannot read it; name another"
        )
    maps = [taps[name].read(name, captured[name]) for name in names]
    whole = Headed(network, heads.build(kind, logits, maps, **settings), list(taps.values()))
    whole.train(network.training)
    record = {"operation": "heads", "kind": kind, "layers": list(map(str, layers)), **settings}
    record_operations(whole, [*applied_operations(network), record])
    return whole
