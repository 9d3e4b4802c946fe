"""Whether the state of a weights file fits a module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.errors import NonFiniteError, TutelageError

_COMPILED = "_orig_mod."  # torch.compile adds it before the keys of a compiled module


def without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes that wrappers add to its keys, unless the module's own keys have them.

    Args:
        state: of a file.
        expected: the module's ``state_dict``.
    """
    if not any(_COMPILED in key for key in expected):
        state = {key.replace(_COMPILED, ""): value for key, value in state.items()}
    stripped = state
    while not stripped.keys() & expected.keys():
        if len({key.partition(".")[0] for key in stripped}) != 1 or not all("." in key for key in stripped):
            return state  # of another network
        stripped = {key.partition(".")[2]: value for key, value in stripped.items()}
    return stripped


def check_fit(file: str, network: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a file's state has the keys, dtypes and shapes of a module's own state, and finite values.

    Args:
        file, network: the file and the network's class, for the error message.
        state: of the file.
        expected: the module's ``state_dict``.

    Raises:
        NonFiniteError: a value is NaN or infinite.
        TutelageError: the state does not fit.
    """
    _check_keys(file, network, state, expected)
    _check_dtypes(file, state, expected)
    _check_shapes(file, network, state, expected)
    _check_finite(file, state)


def _check_keys(file: str, network: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    # Files older than torch 0.4.1 have no num_batches_tracked; no output depends on it.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    if missing or unexpected:
        faults = [f"lacks {short_list(missing)}"] * bool(missing) + [f"also has {short_list(unexpected)}"] * bool(
            unexpected
        )
        raise TutelageError(
            f"the weights {file!r} are not those of this {network}:"
            f" the file {' and '.join(faults)}; build the model from which they were saved"
        )


def _check_dtypes(file: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not dense, and dtypes whose conversion to the module's would change values."""
    for key in expected.keys() & state.keys():
        value = state[key]
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            problem = "quantized" if value.is_quantized else "empty (meta)" if value.is_meta else "not dense"
        elif _kind(value) != _kind(expected[key]):
            problem = f"{value.dtype}, and the model's is {expected[key].dtype}"
        else:
            continue
        raise TutelageError(
            f"the weights {file!r} do not fit: {key} is {problem}; save dense weights of the model's own types"
        )


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "integer"


def _check_shapes(file: str, network: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shapes = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    }
    if not shapes:
        return
    weight = _classifier(expected)
    if weight is not None and weight in shapes and set(shapes) <= {weight, weight.removesuffix("weight") + "bias"}:
        in_file, in_model = shapes[weight]
        if in_file[1:] == in_model[1:]:
            raise TutelageError(
                f"the weights {file!r} are for {in_file[0]} classes and this {network} for"
                f" {in_model[0]} ({weight} is {in_file} in the file and {in_model} in the model):"
                f" build it with num_classes={in_file[0]}"
            )
    differences = [f"{key} is {a} in the file and {b} in the model" for key, (a, b) in shapes.items()]
    raise TutelageError(
        f"the weights {file!r} do not fit this {network}: {short_list(differences)};"
        " build the model from which they were saved"
    )


def _classifier(expected: Mapping[str, Tensor]) -> str | None:
    """The key of the last weight matrix, which in a classifier computes the logits."""
    matrices = [key for key, value in expected.items() if value.ndim == 2 and key.endswith("weight")]
    return matrices[-1] if matrices else None


def _check_finite(file: str, state: Mapping[str, Tensor]) -> None:
    non_finite = [
        key for key, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()
    ]
    if non_finite:
        raise NonFiniteError(
            f"the weights {file!r} hold NaN or infinity in {short_list(non_finite)}:"
            " the training that wrote them diverged; take an earlier file"
        )


def short_list(items: list[str], limit: int = 3) -> str:
    """The first items, separated by commas, and the number of the others."""
    remaining = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {remaining} more" if remaining > 0 else "")
