"""Weights files with integers of few bits or without the zeros of masks, and the count of the bits of integers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import TutelageError
from tutelage.files import as_path, atomic_write
from tutelage.models.packing import CODES, GROUPS, MASK, PACKED, SPARSE, VALUES, index_width, pack, without_zeros
from tutelage.models.quantised import code_range, quantised_layers
from tutelage.models.surgery.mask import masked_layers
from tutelage.models.weights import encode_weights


def save_packed(
    path: str | os.PathLike[str],
    network: nn.Module,
    metadata: Mapping[str, Any],
    write: Callable[[Path, bytes], None] = atomic_write,
) -> int:
    """Write a quantised or masked network as a smaller safetensors file.

    Weights of quantised layers are integers of their own number of bits; of masked layers (``surgery/mask.py``) only
    the weights that are not fixed at 0 are in the file, with a bit for each pair of an output and an input. Everything
    that opens weights files reads it as the file of the network with rounded weights, whose outputs are the same. The
    float weights with which the training of a quantised network would continue are not in it.

    Args:
        path: the file; missing folders are created.
        network: it has quantised layers (``surgery/quantise.py``) or masked ones.
        metadata: as in ``save_weights``.
        write: writes the whole file at once.

    Returns:
        The size of the file in bytes.

    Raises:
        TutelageError: no layer is quantised or masked, ``metadata`` is not JSON, or writing failed.
    """
    layers, sparse = quantised_layers(network), masked_layers(network)
    if not packable(network):
        raise TutelageError(
            f"{type(network).__name__} has no quantised layer and no masked one, so nothing can be packed; quantise it "
            "first"
        )
    state = dict(network.state_dict())
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        low, _ = code_range(layer.bits)
        groups = state.pop(f"{prefix}weight_group")
        del state[f"{prefix}weight"], state[f"{prefix}weight_gain"]
        state[f"{prefix}weight_scale"] = layer.scales()
        state[prefix + CODES] = pack(layer.codes().flatten().int() - low, layer.bits)
        if width := index_width(len(layer.weight_scale), len(layer.weight)):
            state[prefix + GROUPS] = pack(groups, width)
    for name, masked in sparse.items():
        prefix = f"{name}." if name else ""
        state[prefix + MASK], state[prefix + VALUES] = without_zeros(state.pop(f"{prefix}weight"), masked.mask)
    formats = {
        PACKED: {name: {"bits": layer.bits, "shape": list(layer.weight.shape)} for name, layer in layers.items()},
        SPARSE: {name: list(layer.get_parameter("weight").shape) for name, layer in sparse.items()},
    }
    entries = {key: entry for key, entry in formats.items() if entry}
    data = encode_weights(state, {**metadata, **entries}, f"this {type(network).__name__}")
    write(as_path(path), data)
    return len(data)


def packable(network: nn.Module) -> bool:
    """Whether ``save_packed`` makes a smaller file: a layer is quantised or masked."""
    return bool(quantised_layers(network) or masked_layers(network))


def bit_counts(network: nn.Module) -> dict[str, int]:
    """The bits of a network's weights and of what belongs to them.

    Returns:
        ``weights``: O I k^2 b, summed over the quantised layers; ``scales``: G 32; ``index``: O ceil(log2 G), the group
        of each channel, 0 if G is 1 or O; ``rest``: all other tensors, such as biases, in their own type; ``total``,
        the sum; and ``float``, of the same network with float weights.
    """
    layers = quantised_layers(network).values()
    weights = sum(layer.weight.numel() * layer.bits for layer in layers)
    scales = sum(len(layer.weight_scale) * 32 for layer in layers)
    index = sum(len(layer.weight) * index_width(len(layer.weight_scale), len(layer.weight)) for layer in layers)
    quantised = {
        id(tensor)
        for layer in layers
        for tensor in (layer.weight, layer.weight_scale, layer.weight_gain, layer.weight_group)
    }
    state = network.state_dict(keep_vars=True).values()
    rest = sum(tensor.numel() * tensor.element_size() * 8 for tensor in state if id(tensor) not in quantised)
    activations = sum(3 * 32 for layer in layers if layer.input_bits)  # scale, gain and zero: a float network has none
    return {
        "weights": weights,
        "scales": scales,
        "index": index,
        "rest": rest,
        "total": weights + scales + index + rest,
        "float": sum(layer.weight.numel() * 32 for layer in layers) + rest - activations,
    }
