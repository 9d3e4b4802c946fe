"""The settings of torch that a caller may have changed around a call of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def default_settings() -> Iterator[None]:
    """Run with torch's defaults: gradients recorded, no inference mode, no autocast, new tensors float32 on the CPU.

    The functions that a user calls run in it (it is a decorator too), so that a run depends on its configuration alone
    and not on a ``torch.no_grad()``, a ``torch.autocast(...)`` or a ``torch.set_default_device(...)`` around it.
    Settings that choose between correct results stay the caller's: deterministic algorithms, the precision of float32
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
    """The kinds of devices here that have an autocast of their own."""
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    return {kind for kind in kinds if torch.amp.is_autocast_available(kind)}
