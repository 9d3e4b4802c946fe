"""Surgery: operations that change a network's layers, and can be repeated when the network is loaded from a file.

Each operation is a part (``tutelage.parts``) of the kind ``surgery``: a file with a function
``apply(network, example, ...)``. The network that it returns records its operations with their settings
(``applied_operations``). A weights file stores this record, so that the network can be rebuilt before its weights are
loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.errors import TutelageError, one_line, unknown
from tutelage.parts import import_part, part_names
from tutelage.text import value_text

_RECORD = "_tutelage_surgery"  # attribute of a network: its operations
MAX_LENGTH = 4096  # of a list among an operation's settings


def applied_operations(network: nn.Module) -> list[dict[str, Any]]:
    """The operations that were applied to this network, with their settings."""
    return [dict(operation) for operation in network.__dict__.get(_RECORD, ())]


def record_operations(network: nn.Module, operations: Sequence[Mapping[str, Any]]) -> None:
    """Replace the record of a network's operations; copies of the network have the same record."""
    network.__dict__[_RECORD] = tuple(dict(operation) for operation in operations)


def append_operation(network: nn.Module, name: str, **settings: Any) -> None:
    """Add an operation to the record."""
    record_operations(network, [*applied_operations(network), {"operation": name, **settings}])


def declare_inputs(whole: nn.Module, networks: Iterable[nn.Module]) -> None:
    """Let a network that contains others take the inputs that they take: pixels, or normalised images (``Tapped``).

    Raises:
        TutelageError: some take pixels and others do not.
    """
    parts = list(networks)
    pixels = [part for part in parts if getattr(part, "takes_pixels", False)]
    if not pixels:
        return
    if other := next((part for part in parts if part not in pixels), None):
        raise TutelageError(
            f"{type(pixels[0]).__name__} takes pixels and {type(other).__name__} normalised images, so they cannot be "
            "parts of one network; use networks of one kind"
        )
    whole.takes_pixels = True  # type: ignore[assignment]


def reapply(network: nn.Module, operations: Sequence[Mapping[str, Any]], example: Tensor) -> nn.Module:
    """Apply recorded operations in order to a newly built network.

    Args:
        network: it is changed.
        operations: from ``applied_operations`` or from a file; only operations of this package are called.
        example: inputs as the network takes them, (B, ...).

    Returns:
        The network after the last operation, which may be a new one that contains ``network``.

    Raises:
        TutelageError: an operation does not exist, or its settings are invalid.
    """
    names = part_names("surgery")
    for operation in operations:
        settings = dict(operation)
        name = str(settings.pop("operation", ""))
        if name not in names:
            raise unknown("operation on a network", name, names)
        apply = import_part("surgery", name).apply
        parameters = inspect.signature(apply).parameters
        for setting, value in settings.items():
            _check_plain(name, setting, value)
            if setting in parameters and "Module" in str(parameters[setting].annotation):
                raise TutelageError(
                    f"the operation {name!r} cannot be repeated: its {setting!r} takes networks, and a file "
                    "cannot hold these"
                )
        try:
            network = apply(network, example, **settings)
        except TutelageError:
            raise
        except Exception as error:  # settings from a file may be anything
            raise TutelageError(f"the operation {name!r} cannot be repeated: {one_line(error)}") from error
    return network


def _check_plain(operation: str, setting: str, value: object) -> None:
    """Raise an error for a setting that is not text, a number or a flat list of these."""
    values = value if isinstance(value, list) else [value]
    if len(values) <= MAX_LENGTH and all(isinstance(item, str | int | float) for item in values):
        return
    problem = f"holds {len(values)} values" if len(values) > MAX_LENGTH else f"is {value_text(value)}"
    raise TutelageError(
        f"the operation {operation!r} cannot be repeated: its {setting!r} {problem}; "
        f"expected text, a number or a list of at most {MAX_LENGTH} of them"
    )
