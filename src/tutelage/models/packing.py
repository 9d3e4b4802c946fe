"""Integers of few bits in bytes, weights without their zeros, and the weights of a packed file (``packed.py``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import TutelageError

PACKED = "packed_integers"
"""The key of a file's metadata: the bits and the shape of the weights of each quantised layer."""

SPARSE = "sparse_weights"
"""The key of a file's metadata: the shape of the weights of each layer whose zeros are not in the file."""

MASK, VALUES = "weight_mask", "weight_values"
"""The last parts of the keys of such a layer: a bit for each pair of an output and an input, and the other weights."""

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


def without_zeros(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A bit for each pair of an output and an input, (N,) uint8, and the weights of the pairs that the mask selects.

    Args:
        weight: (O, I, ...), 0 where ``mask`` is 0.
        mask: (O, I, 1, ...).
    """
    pairs = mask.flatten(1) != 0
    return pack(pairs.flatten().int(), 1), weight[pairs].flatten()


def unpacked(file: str, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a packed file with the keys of an ordinary one; those of an ordinary file as they are.

    Args:
        file: its name, for messages.
        state: the tensors of the file.
        metadata: of the file.

    Raises:
        TutelageError: metadata and tensors do not belong together.
    """
    result = dict(state)
    try:
        for name, entry in metadata.get(PACKED, {}).items():
            _unpack_layer(result, f"{name}." if name else "", entry["bits"], entry["shape"])
        for name, shape in metadata.get(SPARSE, {}).items():
            _insert_zeros(result, f"{name}." if name else "", shape)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
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


def _insert_zeros(state: dict[str, Tensor], prefix: str, shape: list[int]) -> None:
    """Replace the mask and the other weights of a layer by all its weights."""
    bits, values = state.pop(prefix + MASK), state.pop(prefix + VALUES)
    outputs, inputs, *kernel = shape
    if min(shape) < 1 or bits.dtype != torch.uint8 or bits.shape != (-(-outputs * inputs // 8),):
        raise ValueError
    pairs = unpack(bits, 1, outputs * inputs).view(outputs, inputs) == 1
    weight = values.new_zeros(shape)
    weight[pairs] = values.view(int(pairs.sum()), *kernel)
    state[f"{prefix}weight"] = weight
