"""A network in another mode for a while, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each submodule is given back its own mode, also after an exception.

    ``model.train()`` afterwards would not do: somebody may have frozen a single batch norm.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def restore_state(*models: nn.Module) -> Iterator[None]:
    """Afterwards every submodule has the attributes, the mode and the buffers that it had, also after an exception.

    For passes that are tried: batch normalisation, spectral norm and counters move in train mode. Parameters are not
    covered, since no pass changes them.
    """
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    values = [(buffer, buffer.clone()) for model in models for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, own, buffers in attributes:
            for name in vars(module).keys() - own.keys():
                del vars(module)[name]
            vars(module).update(own)
            for name, buffer in buffers.items():
                if module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, before in values:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
