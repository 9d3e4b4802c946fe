"""Saving weights as plain safetensors files under the network's own key names, and loading them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path, atomic_write
from tutelage.models.state_fit import check_fit, short_list, without_prefix
from tutelage.models.weights_reading import METADATA_KEY, is_pickle, metadata_of, read_pickle, read_safetensors


def save_weights(
    path: str | os.PathLike[str],
    module: nn.Module,
    metadata: Mapping[str, Any],
    write: Callable[[Path, bytes], None] = atomic_write,
) -> str:
    """Write the module's ``state_dict`` as a safetensors file; equal weights give equal bytes.

    Tensors that share memory are each written in full, channels-last tensors in the contiguous layout.

    Args:
        path: the file; missing folders are created.
        module: its parameters and persistent buffers are written with their names and dtypes.
        metadata: plain values that JSON can hold, stored in the file's header.
        write: writes the whole file at once.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        TutelageError: ``metadata`` is not JSON, the state has other values than dense tensors, or writing failed.
    """
    state = module.state_dict()
    no_tensors = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if no_tensors:
        raise TutelageError(
            f"{type(module).__name__} keeps {short_list(no_tensors)} in its state_dict, which is no tensor:"
            " only tensors can be saved; register it as a buffer or leave it out"
        )
    data = encode_weights(state, metadata, f"this {type(module).__name__}")
    write(as_path(path), data)
    return hashlib.sha256(data).hexdigest()


def encode_weights(state: Mapping[str, Tensor], metadata: Mapping[str, Any], name: str) -> bytes:
    """The content of a weights file; equal weights and metadata give equal bytes.

    Args:
        state: dense tensors by key.
        metadata: plain values that JSON can hold.
        name: what the weights belong to, for error messages.

    Raises:
        TutelageError: ``metadata`` is not JSON, or a tensor cannot be saved.
    """
    try:
        text = json.dumps(dict(metadata), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TutelageError(
            f"the metadata for the weights of {name} is not JSON: {one_line(error)}; give plain, finite values"
        ) from error
    try:
        # Copies, since safetensors refuses tensors that share memory or have another layout.
        copies = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()
        }
        return save(copies, metadata={METADATA_KEY: text})
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise TutelageError(
            f"the weights of {name} cannot be saved: {one_line(error)};"
            " safetensors holds dense tensors of the ordinary types"
        ) from error


def load_weights(path: str | os.PathLike[str], module: nn.Module) -> dict[str, Any]:
    """Copy a file's weights into the module; after an error the module is unchanged.

    Besides safetensors files, files of ``torch.save`` are read if loading them runs no code: a ``state_dict``, bare or
    in a checkpoint under ``state_dict``, ``model_state_dict``, ``model``, ``model_state``, ``net``, ... Prefixes that
    wrappers add to keys (``module.``, ``_orig_mod.``, in any order) are removed.

    Returns:
        The metadata given to ``save_weights``; empty for other files.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        TutelageError: the file is missing, damaged, would run code, or belongs to another network.
    """
    file = str(as_path(path))
    state, metadata = read_state(file)
    own_state = module.state_dict()
    state = without_prefix(state, own_state)
    check_fit(file, type(module).__name__, state, own_state)
    module.load_state_dict(state)
    return metadata


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's weights under the file's own keys, and the metadata given to ``save_weights``, empty for other files.

    Raises:
        TutelageError: the file is missing, damaged or would run code.
    """
    file = str(as_path(path))
    return read_pickle(file) if is_pickle(file) else read_safetensors(file)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata given to ``save_weights``, without reading the weights; empty for other files."""
    file = str(as_path(path))
    return {} if is_pickle(file) else metadata_of(file)
