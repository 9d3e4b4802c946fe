"""Metrics that surgery operations (``models/surgery``) add to the evaluation of a classifier.

A module of this folder has the name of an operation and a function ``metrics(model, split, logits, labels)``, which
gives plain JSON values by name. It is called for networks that were made by that operation.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped


def metrics_of(model: nn.Module, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The added metrics of the operations that made this network.

    Args:
        model: the network, on the device of ``logits``.
        split: what it is evaluated on.
        logits: (N, C), its logits for all of it.
        labels: (N,) int64 on the same device, ``-1`` for none.
    """
    if not isinstance(model, Tapped):
        return {}
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    added: dict[str, Any] = {}
    for operation in applied_operations(model.module):
        if operation["operation"] in known:
            module = importlib.import_module(f"{__name__}.{operation['operation']}")
            added |= module.metrics(model, split, logits, labels)
    return added
