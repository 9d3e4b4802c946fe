"""The compiled forward passes of one network: one for its logits, and one for each combination of roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tutelage.models.capture import add_hooks, remove_hooks
from tutelage.models.roles import Tap

T = TypeVar("T")


class CompiledForward:
    """A model's ``forward`` through ``torch.compile``.

    Each pass is compiled when it is first called. Tapped layers get permanent hooks, since compiled code ignores hooks
    that are added later; ``discard`` removes them.

    Args:
        model: its ``forward`` takes one argument and returns logits.
        args, options: those of ``torch.compile``.
    """

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        def run(inputs: Any) -> Tensor:
            logits: Tensor = model.forward(inputs)
            return logits

        self._model, self._args, self._options = model, args, options
        self._run = self._compile(run)
        self._run_with_taps: dict[tuple[str, ...], Callable[[Any], tuple[Tensor, dict[str, Any]]]] = {}
        self._handles: list[RemovableHandle] = []

    def __call__(self, inputs: Any) -> Tensor:
        """The logits."""
        return self._run(inputs)

    def tap(self, inputs: Any, module: nn.Module, taps: Mapping[str, Tap]) -> tuple[Tensor, dict[str, Any]]:
        """The logits, and role to the layer's input or output; ``module`` holds the layers of ``taps``."""
        roles = tuple(taps)
        if roles not in self._run_with_taps:
            model, captured = self._model, dict[str, Any]()
            add_hooks(module, taps, captured, self._handles)

            def run(inputs: Any) -> tuple[Tensor, dict[str, Any]]:
                logits = model.forward(inputs)
                return logits, {role: captured[role] for role in roles}

            self._run_with_taps[roles] = self._compile(run)
        return self._run_with_taps[roles](inputs)

    def discard(self) -> None:
        """Remove the hooks."""
        remove_hooks(self._handles)
        self._handles = []

    def _compile(self, function: Callable[[Any], T]) -> Callable[[Any], T]:
        compiled: Callable[[Any], T] = torch.compile(_with_new_code(function), *self._args, **self._options)
        return compiled


def _with_new_code(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """The same function with a code object of its own.

    ``torch.compile`` caches compiled code by code object, limits the entries of each, and does not check hooks. If all
    networks shared a code object, one network could run code compiled for another, without its own hooks.
    """
    original = cast(FunctionType, function)
    return FunctionType(
        original.__code__.replace(),
        original.__globals__,
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
