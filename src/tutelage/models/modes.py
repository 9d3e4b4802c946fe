"""Temporary changes of a network's mode and state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode; on exit, also after an exception, restore the mode of each submodule.

    ``model.train()`` would not restore them: some submodules, such as frozen batch norms, may have been in eval mode.
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
    """On exit, also after an exception, restore the attributes, modes and buffers of every submodule.

    For trial forward passes, which in train mode update batch normalisation, spectral norm and counters. Parameters
    are not restored, since a forward pass does not change them.
    """
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    saved = [(module, dict(vars(module)), dict(module._buffers)) for module in modules]
    values = [(buffer, buffer.clone()) for model in models for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, attributes, buffers in saved:
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            for name, buffer in buffers.items():
                if module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
