"""What the tests of weights files share."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.models.weights import load_weights

METADATA = {"model": "resnet8", "classes": ["cat", "dög"], "epochs": 3, "z": None, "a": {"y": 1.5, "x": True}}


def equal_states(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(state) == list(other) and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in state.items()
    )


def refusal(path: Path, module: nn.Module, kind: type[TutelageError] = TutelageError) -> str:
    """The one-line error message, which names the file; the module does not change."""
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(kind) as exc_info:
        load_weights(path, module)
    message = str(exc_info.value)
    assert repr(str(path)) in message
    assert "\n" not in message
    assert equal_states(before, module.state_dict())
    return message
