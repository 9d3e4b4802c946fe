"""Reading weights files: safetensors, and those files of ``torch.save`` that run no code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tutelage.errors import TutelageError, one_line
from tutelage.models.packing import unpacked
from tutelage.parsing import parse_json

# All metadata is under one key of the header: safetensors writes several keys in no fixed order, and equal weights must
# give equal files.
METADATA_KEY = "tutelage"

# Keys under which checkpoints store the weights beside the optimizer's state; the first one present is used.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "net_state_dict", "module")


def is_pickle(file: str) -> bool:
    """Whether the file is from ``torch.save``, a zip archive or a bare pickle, by its first bytes.

    Raises:
        TutelageError: the file cannot be read.
    """
    try:
        if Path(file).exists() and not Path(file).is_file():  # reading a pipe may never end
            raise OSError("it is not a regular file")
        with Path(file).open("rb") as handle:
            start = handle.read(9)
    except OSError as error:
        raise TutelageError(
            f"cannot read the weights {file!r}: {error.strerror or one_line(error)}; check the path"
        ) from error
    # A safetensors file starts with eight arbitrary bytes, the length of its header, and a brace.
    return start[8:] != b"{" and start.startswith((b"PK\x03\x04", b"\x80"))


def read_safetensors(file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state and the metadata of a safetensors file; packed weights are unpacked.

    Raises:
        TutelageError: the file is damaged.
    """
    metadata = metadata_of(file)
    try:
        with safe_open(file, framework="pt") as handle:
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    return unpacked(file, state, metadata), metadata


def metadata_of(file: str) -> dict[str, Any]:
    """The metadata of a safetensors file; empty if ``save_weights`` did not write it.

    Raises:
        TutelageError: the file or its metadata is damaged.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            header: Mapping[str, str] = handle.metadata() or {}
        metadata = parse_json(header.get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(metadata, dict):
        raise TutelageError(
            f"the metadata in the header of {file!r} is {metadata!r}: expected a JSON object; save it again"
        )
    return metadata


def _damaged(file: str, error: Exception) -> TutelageError:
    return TutelageError(
        f"{file!r} is not a complete weights file ({one_line(error)}):"
        " give a complete file of save_weights, safetensors or torch.save"
    )


def read_pickle(file: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a file of ``torch.save``, and empty metadata. No code in the file is run.

    Raises:
        TutelageError: the file is damaged, would run code, is compressed, or has no ``state_dict``.
    """
    _check_uncompressed(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old formats
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        fault = f"would run code ({match[1]})" if match else "would run code or is damaged"
        raise TutelageError(
            f"{file!r} {fault}, and was not loaded: if you trust it,"
            " convert its state_dict to safetensors in the program that made it"
        ) from error
    except Exception as error:
        raise _damaged(file, error) from error
    entries = [loaded.get(name) for name in _CONTAINERS] if isinstance(loaded, Mapping) else []
    for state in (loaded, *entries):
        if _is_state(state):
            return dict(state), {}
    content = (
        f"a mapping of {', '.join(map(repr, list(loaded)[:3]))}"
        if isinstance(loaded, Mapping)
        else type(loaded).__name__
    )
    raise TutelageError(
        f"{file!r} holds {content} and no state_dict: save model.state_dict(), bare or under 'state_dict' or 'model'"
    )


def _check_uncompressed(file: str) -> None:
    """Refuse a compressed archive: ``torch.save`` writes none, and a small one may unpack to more than the memory."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            compressed = sum(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise _damaged(file, error) from error
    if compressed:
        raise TutelageError(
            f"{file!r} has {compressed} compressed entries, which torch.save does not write, and was not loaded:"
            " save it with torch.save or as safetensors"
        )


def _is_state(value: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items())
    )
