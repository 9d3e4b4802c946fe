"""Weights as plain safetensors files, under the network's own key names."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tutelage.errors import NonFiniteError, TutelageError, one_line
from tutelage.files import as_path, atomic_write
from tutelage.parsing import parse_json

# One key holds everything: the library keeps the header's map in no fixed order, and equal weights are to be
# equal files.
_ABOUT = "tutelage"

# What checkpoints call the weights beside an optimiser's state and the like; the first that is there counts.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "net_state_dict", "module")
_COMPILED = "_orig_mod."  # torch.compile puts it where the compiled module is

_SHOWN = 3  # so many keys are named in an error


def save_weights(
    path: str | os.PathLike[str],
    module: nn.Module,
    about: Mapping[str, Any],
    write: Callable[[Path, bytes], None] = atomic_write,
) -> str:
    """Write the module's ``state_dict`` as safetensors, all at once; equal weights give equal bytes.

    Tensors that share memory are written once each, those in channels-last order as ordinary ones.

    Args:
        path: the file; missing folders are made.
        module: its parameters and persistent buffers are written, under their own names, in their own types.
        about: anything that JSON can hold, kept in the file's header.
        write: writes a whole file at once.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        TutelageError: ``about`` is not JSON, the state holds more than dense tensors, or the disk refused.
    """
    try:
        text = json.dumps(dict(about), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TutelageError(
            f"what is told about the weights in {str(path)!r} is not JSON: {one_line(error)}; give plain, finite values"
        ) from error
    state = module.state_dict()
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise TutelageError(
            f"{type(module).__name__} keeps {_some(foreign)} in its state_dict, which is no tensor:"
            " only tensors can be saved; register it as a buffer or leave it out"
        )
    try:
        # A copy each: safetensors refuses tensors that share memory or lie in another order.
        copies = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()
        }
        data = save(copies, metadata={_ABOUT: text})
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise TutelageError(
            f"the weights of this {type(module).__name__} cannot be saved: {one_line(error)};"
            " safetensors holds dense tensors of the ordinary types"
        ) from error
    write(as_path(path), data)
    return hashlib.sha256(data).hexdigest()


def load_weights(path: str | os.PathLike[str], module: nn.Module) -> dict[str, Any]:
    """Copy a file's weights into the module, all of them or, after an error, none.

    Safetensors files are read as they are; files of ``torch.save`` (a ``state_dict``, bare or in a checkpoint under
    ``state_dict``, ``model_state_dict``, ``model``, ``model_state``, ``net``, ...) only where they run no code. What
    wrappers put before keys (``module.``, ``_orig_mod.``, in any order) is dropped.

    Returns:
        What `save_weights` was told about them; empty for files from elsewhere.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
        TutelageError: the file is missing, damaged, asks to run code, or belongs to another network.
    """
    file = str(as_path(path))
    state, about = _read_pickle(file) if _is_pickle(file) else _read_safetensors(file)
    own = module.state_dict()
    state = _without_prefix(state, own)
    _check_keys(file, module, state, own)
    _check_kinds(file, state, own)
    _check_shapes(file, module, state, own)
    _check_finite(file, state)
    module.load_state_dict(state)
    return about


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_weights` was told, without reading the weights: enough to build the network they fit."""
    file = str(as_path(path))
    return {} if _is_pickle(file) else _about_in(file, _metadata(file))


# --- reading


def _is_pickle(file: str) -> bool:
    """By the first bytes, since names lie: a zip archive or a bare pickle (both from ``torch.save``)."""
    try:
        if Path(file).exists() and not Path(file).is_file():  # a pipe may never end
            raise OSError("it is no ordinary file")
        with Path(file).open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise TutelageError(
            f"cannot read the weights {file!r}: {error.strerror or one_line(error)}; check the path"
        ) from error
    # A safetensors file starts with the length of its header, eight bytes that may be anything, and a brace.
    return start[8:] != b"{" and start.startswith((b"PK\x03\x04", b"\x80"))


def _metadata(file: str) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _read_safetensors(file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    about = _about_in(file, _metadata(file))
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, about  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _about_in(file: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = parse_json(metadata.get(_ABOUT, "{}"))
    except ValueError as error:
        raise _damaged(file, error) from error
    if not isinstance(about, dict):
        raise TutelageError(
            f"the header of {file!r} says {about!r} about its weights: expected a JSON object; save it again"
        )
    return about


def _damaged(file: str, error: Exception) -> TutelageError:
    return TutelageError(
        f"{file!r} is not a whole weights file ({one_line(error)}):"
        " give one of save_weights, safetensors or torch.save that was copied to its end"
    )


def _read_pickle(file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    _refuse_packed(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on old formats
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        fault = f"asks to run code ({named[1]})" if named else "asks to run code or is damaged"
        raise TutelageError(
            f"{file!r} {fault}, and was not loaded: if you trust it,"
            " convert its state_dict to safetensors where it was made"
        ) from error
    except Exception as error:
        raise _damaged(file, error) from error
    entries = [loaded.get(name) for name in _CONTAINERS] if isinstance(loaded, Mapping) else []
    for state in (loaded, *entries):
        if _is_state(state):
            return dict(state), {}
    held = (
        f"a mapping of {', '.join(map(repr, list(loaded)[:_SHOWN]))}"
        if isinstance(loaded, Mapping)
        else type(loaded).__name__
    )
    raise TutelageError(
        f"{file!r} holds {held} and no state_dict: save model.state_dict(), bare or under 'state_dict' or 'model'"
    )


def _refuse_packed(file: str) -> None:
    """Refuse a compressed archive: torch.save writes none, and a small one may unpack to more than fits into memory."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            packed = sum(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _damaged(file, error) from error
    if packed:
        raise TutelageError(
            f"{file!r} has {packed} compressed entries, which torch.save does not write, and was not loaded:"
            " save it with torch.save or as safetensors"
        )


def _is_state(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items())
    )


# --- does it fit?


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without what wrappers put before names, as far as the module itself has no such names."""
    if not any(_COMPILED in key for key in own):
        state = {key.replace(_COMPILED, ""): value for key, value in state.items()}
    shorter = state
    while not shorter.keys() & own.keys():
        if len({key.partition(".")[0] for key in shorter}) != 1 or not all("." in key for key in shorter):
            return state  # of another network: its names as they are
        shorter = {key.partition(".")[2]: value for key, value in shorter.items()}
    return shorter


def _check_keys(file: str, module: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    # Files older than torch 0.4.1 have no count of batches; nothing that is computed depends on it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        faults = [f"lacks {_some(missing)}"] * bool(missing) + [f"also has {_some(unexpected)}"] * bool(unexpected)
        raise TutelageError(
            f"the weights {file!r} are not those of this {type(module).__name__}:"
            f" the file {' and '.join(faults)}; build the model that they were saved from"
        )


def _check_kinds(file: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors without plain values, and those whose values would change on the way into the module's."""
    for key in own.keys() & state.keys():
        value = state[key]
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            what = "quantized" if value.is_quantized else "empty (meta)" if value.is_meta else "not dense"
        elif _kind(value) != _kind(own[key]):
            what = f"{value.dtype}, and the model's is {own[key].dtype}"
        else:
            continue
        raise TutelageError(
            f"the weights {file!r} do not fit: {key} is {what}; save dense weights of the model's own types"
        )


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "integer"


def _check_shapes(file: str, module: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    wrong = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    }
    if not wrong:
        return
    weight = _classifier(own)
    if weight is not None and weight in wrong and set(wrong) <= {weight, weight.removesuffix("weight") + "bias"}:
        there, here = wrong[weight]
        if there[1:] == here[1:]:
            raise TutelageError(
                f"the weights {file!r} are for {there[0]} classes and this {type(module).__name__} for"
                f" {here[0]} ({weight} is {there} in the file and {here} in the model):"
                f" build it with num_classes={there[0]}"
            )
    shown = [f"{key} is {there} in the file and {here} in the model" for key, (there, here) in wrong.items()]
    raise TutelageError(
        f"the weights {file!r} do not fit this {type(module).__name__}: {_some(shown)};"
        " build the model that they were saved from"
    )


def _classifier(own: Mapping[str, Tensor]) -> str | None:
    """The key of the last matrix, which in a classifier makes the logits."""
    matrices = [key for key, value in own.items() if value.ndim == 2 and key.endswith("weight")]
    return matrices[-1] if matrices else None


def _check_finite(file: str, state: Mapping[str, Tensor]) -> None:
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if bad:
        raise NonFiniteError(
            f"the weights {file!r} hold NaN or infinity in {_some(bad)}:"
            " the training that wrote them diverged; take an earlier file"
        )


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
