"""Fingerprints of a network's weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from tutelage.models.state import check_state


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights and buffers, 16 hexadecimal digits; only equal states have equal fingerprints.

    Raises:
        TutelageError: an entry of the state is not a dense tensor with values.
    """
    check_state(type(getattr(model, "module", model)).__name__, model)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
