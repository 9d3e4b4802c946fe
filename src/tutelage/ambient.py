"""Calling this package with PyTorch's default settings, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def default_settings() -> Iterator[None]:
    """Use PyTorch's defaults: gradients recorded, no inference mode, no autocast, new tensors float32 on the CPU.

    A context manager, and a decorator of the functions that a user calls: their results then depend only on their
    arguments, not on a surrounding ``torch.no_grad()``, ``torch.autocast(...)`` or ``torch.set_default_device(...)``.
    Settings that choose between correct results are left unchanged: deterministic algorithms, the precision of float32
    matrix products, numbers of threads.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in _kinds():
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def _kinds() -> set[str]:
    """The device types of this machine that support autocast."""
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    return {kind for kind in kinds if torch.amp.is_autocast_available(kind)}
