"""Metrics that surgery operations (``models/surgery``) add to the evaluation of a classifier.

They are parts (``tutelage.parts``) of the kind ``operations``: a file that has the name of an operation, with a
function ``metrics(model, split, logits, labels)`` that returns JSON values by name. It is called for networks to which
that operation was applied. A network can also name such a file itself, in an attribute ``metrics_part``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.parts import import_part, part_names


def metrics_of(model: nn.Module, split: Split, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compute the metrics of the operations applied to this network, and those that it names itself.

    Args:
        model: the network, on the device of ``logits``.
        split: the split on which it is evaluated.
        logits: (N, C), its logits for the whole split.
        labels: (N,) int64 on the same device, ``-1`` for samples without a label.
    """
    if not isinstance(model, Tapped):
        return {}
    names = part_names("operations")
    added: dict[str, Any] = {}
    applied = [operation["operation"] for operation in applied_operations(model.module)]
    for name in (getattr(model.module, "metrics_part", None), *applied):
        if name in names:
            added |= import_part("operations", name).metrics(model, split, logits, labels)
    return added
