"""Integers of few bits in bytes, and the weights of a packed file (``packed.py``)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import TutelageError

PACKED = "packed_integers"
"""The key of a file's metadata: the bits and the shape of the weights of each quantised layer."""

CODES, GROUPS = "weight_codes", "weight_group_codes"
"""The last parts of the keys of a layer's packed integers: its weights, and the groups of its channels."""


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers from 0 to 2^bits - 1, (N,), in ceil(N bits / 8) bytes, (M,) uint8; the lowest bit comes first."""
    shifts = np.arange(bits, dtype=np.uint16)
    flags = (values.cpu().numpy().astype(np.uint16)[:, None] >> shifts & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(flags, bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` integers of ``pack``, (N,) int64."""
    flags = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy((flags.astype(np.int64) << np.arange(bits)).sum(1))


def index_width(groups: int, channels: int) -> int:
    """The bits of a channel's group: none with one group, and none with one for each channel."""
    return 0 if groups in (1, channels) else math.ceil(math.log2(groups))


def unpacked(file: str, state: Mapping[str, Tensor], layers: object) -> dict[str, Tensor]:
    """The weights of a packed file with the keys of an ordinary one.

    Args:
        file: its name, for messages.
        state: the tensors of the file.
        layers: its metadata under ``PACKED``.

    Raises:
        TutelageError: metadata and tensors do not belong together.
    """
    result = dict(state)
    try:
        if not isinstance(layers, dict):
            raise TypeError
        for name, entry in layers.items():
            _unpack_layer(result, f"{name}." if name else "", entry["bits"], entry["shape"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
        raise TutelageError(
            f"the packed weights in {file!r} are damaged: its integers and its header do not belong together; save "
            "them again"
        ) from error
    return result


def _unpack_layer(state: dict[str, Tensor], prefix: str, bits: int, shape: list[int]) -> None:
    """Replace the packed tensors of a layer by its own."""
    scale, codes, channels, count = (
        state[f"{prefix}weight_scale"],
        state.pop(prefix + CODES),
        shape[0],
        math.prod(shape),
    )
    width = index_width(len(scale), channels)
    index = state.pop(prefix + GROUPS) if width else torch.empty(0, dtype=torch.uint8)
    sizes = (len(codes), len(index)) == (-(-count * bits // 8), -(-channels * width // 8))
    if not (sizes and min(shape) > 0 and 1 < bits <= 8 and 0 < len(scale) <= channels):
        raise ValueError
    if width:
        group = unpack(index, width, channels)
    else:
        group = torch.arange(channels) if len(scale) == channels else torch.zeros(channels, dtype=torch.int64)
    integers = unpack(codes, bits, count).view(shape) - 2 ** (bits - 1)
    state[f"{prefix}weight"] = integers.to(scale) * scale[group].view(-1, *(1,) * (len(shape) - 1))
    state[f"{prefix}weight_group"] = group
    state[f"{prefix}weight_gain"] = torch.ones_like(scale)
