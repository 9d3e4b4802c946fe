"""What tells one network's weights from another's."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from tutelage.models.state import check_state


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that two networks share only if all their weights and buffers are equal.

    Raises:
        TutelageError: its state is not all dense tensors with values.
    """
    check_state(type(getattr(model, "module", model)).__name__, model)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
