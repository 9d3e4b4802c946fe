"""Hooks that capture the features of roles during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tutelage.models.outputs import first_tensor
from tutelage.models.roles import Tap


class _StopForward(BaseException):  # no Exception, so that a network's own `except Exception` does not catch it
    """Ends a forward pass once all requested features are captured."""


def capture(
    forward: Callable[[], Tensor], module: nn.Module, taps: Mapping[str, Tap], *, stop: bool
) -> tuple[Tensor | None, dict[str, Any]]:
    """Run a forward pass with hooks that are removed afterwards, also after an exception.

    Args:
        forward: runs ``module`` and returns its logits.
        module: the network with the tapped layers.
        taps: role to layer.
        stop: whether to end the pass at the last of the roles; there are no logits then.

    Returns:
        The logits or ``None``, and role to the layer's input or output. Roles whose layer did not run are missing.
    """
    captured: dict[str, Any] = {}
    handles: list[RemovableHandle] = []
    try:
        add_hooks(module, taps, captured, handles, stop=stop)
        return forward(), captured
    except _StopForward:
        return None, captured
    finally:
        remove_hooks(handles)


def add_hooks(
    module: nn.Module,
    taps: Mapping[str, Tap],
    captured: dict[str, Any],
    handles: list[RemovableHandle],
    stop: bool = False,
) -> None:
    """Add hooks that write each role's value to ``captured``, and their handles to ``handles``.

    Of a layer that runs several times, the last call is captured. With ``stop``, the hook that captures the last of the
    roles ends the forward pass.
    """
    missing_calls = {role: tap.calls for role, tap in taps.items()} if stop else None
    for role, tap in taps.items():
        handles.append(_add_hook(module.get_submodule(tap.layer), tap, role, captured, missing_calls))


def remove_hooks(handles: Sequence[RemovableHandle]) -> None:
    """Remove all hooks."""
    for handle in handles:
        handle.remove()


def _add_hook(
    layer: nn.Module, tap: Tap, role: str, captured: dict[str, Any], missing_calls: dict[str, int] | None
) -> RemovableHandle:
    def store(value: Any) -> None:
        tensor = first_tensor(value)
        captured[role] = tensor.clone() if tap.overwritten and tensor is not None else value
        if missing_calls is not None:
            missing_calls[role] -= 1
            if all(count <= 0 for count in missing_calls.values()):
                raise _StopForward

    if tap.of_input:
        return layer.register_forward_pre_hook(lambda _layer, inputs: store(inputs))
    return layer.register_forward_hook(lambda _layer, _inputs, output: store(output))
