"""Networks changed from the inside, and rebuilt so from a file.

Each module of this folder is one operation, ``apply(network, example, ...)``. The network that it returns records its
operations with their settings (``applied_operations``). A weights file stores this record, so that the network can be
rebuilt before its weights are loaded.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.errors import TutelageError, one_line, unknown
from tutelage.text import value_text

_RECORD = "_tutelage_surgery"  # an attribute that no network of a user has
_LONGEST = 4096  # entries of a list among an operation's settings


def applied_operations(network: nn.Module) -> list[dict[str, Any]]:
    """What has been done to this network, for its file."""
    return [dict(operation) for operation in network.__dict__.get(_RECORD, ())]


def record_operations(network: nn.Module, operations: Sequence[Mapping[str, Any]]) -> None:
    """Replace the record of what has been done to this network; copies of it have the same."""
    network.__dict__[_RECORD] = tuple(dict(operation) for operation in operations)


def append_operation(network: nn.Module, name: str, **settings: Any) -> None:
    """Add an operation to the record."""
    record_operations(network, [*applied_operations(network), {"operation": name, **settings}])


def reapply(network: nn.Module, operations: Sequence[Mapping[str, Any]], example: Tensor) -> nn.Module:
    """Do these operations again on a network as it was built, in order.

    Args:
        network: as it was built; it is changed.
        operations: from ``applied_operations``, or from a file; only operations of this folder are ever called.
        example: (B, C, H, W), images as the network takes them.

    Raises:
        TutelageError: for an operation that does not exist, or whose settings do not fit.
    """
    known = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    for operation in operations:
        settings = dict(operation)
        name = str(settings.pop("operation", ""))
        if name not in known:
            raise unknown("operation on a network", name, known)
        apply = importlib.import_module(f"{__name__}.{name}").apply
        parameters = inspect.signature(apply).parameters
        for setting, value in settings.items():
            _check_plain(name, setting, value)
            if setting in parameters and "Module" in str(parameters[setting].annotation):
                raise TutelageError(
                    f"the operation {name!r} cannot be done again: its {setting!r} takes networks, which no file holds"
                )
        try:
            network = apply(network, example, **settings)
        except TutelageError:
            raise
        except Exception as error:  # settings of a file may be anything
            raise TutelageError(f"the operation {name!r} cannot be done again: {one_line(error)}") from error
    return network


def _check_plain(operation: str, setting: str, value: object) -> None:
    """Refuse a setting that is no text, number or flat list of them."""
    values = value if isinstance(value, list) else [value]
    if len(values) <= _LONGEST and all(isinstance(each, str | int | float) for each in values):
        return
    what = f"holds {len(values)} values" if len(values) > _LONGEST else f"is {value_text(value)}"
    raise TutelageError(
        f"the operation {operation!r} cannot be done again: its {setting!r} {what}; "
        f"expected text, a number or a list of at most {_LONGEST} of them"
    )
