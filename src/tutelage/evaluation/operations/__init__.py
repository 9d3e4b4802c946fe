"""Metrics that surgery operations (``models/surgery``) add to the evaluation of a classifier.

A module of this folder has the name of an operation and a function ``metrics(model, split, logits, labels)``, which
returns JSON values by name. It is called for networks to which that operation was applied.
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
    """Compute the metrics of the operations applied to this network.

    Args:
        model: the network, on the device of ``logits``.
        split: the split on which it is evaluated.
        logits: (N, C), its logits for the whole split.
        labels: (N,) int64 on the same device, ``-1`` for samples without a label.
    """
    if not isinstance(model, Tapped):
        return {}
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    added: dict[str, Any] = {}
    for operation in applied_operations(model.module):
        if operation["operation"] in modules:
            module = importlib.import_module(f"{__name__}.{operation['operation']}")
            added |= module.metrics(model, split, logits, labels)
    return added
