"""What is sent from the device to the server: the quantised output of an encoder, and its bytes."""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError

Bits = Literal[8, 16, 32]
HEADER = struct.Struct("<fB")  # scale and zero point
LEVELS = 255
LARGEST_HALF = 65504.0


class Quantised(NamedTuple):
    """Tensors of whole numbers from 0 to 255, (B, ...), and each one's scale and zero point, (B, 1, ..., 1)."""

    levels: Tensor
    scale: Tensor
    zero: Tensor


def quantise(values: Tensor) -> Quantised:
    """Asymmetric quantisation to 8 bits, each sample by its own range: q = round(z / s + p), from 0 to 255.

    s = (max - min) / 255 and p = round(-min / s), where the range is widened to contain 0, so that p is in [0, 255] and
    no value is cut. The error of ``dequantise`` is at most s / 2. For a sample of zeros s is 1.
    """
    axes = tuple(range(1, values.ndim))
    low = values.amin(axes, keepdim=True).clamp(max=0)
    high = values.amax(axes, keepdim=True).clamp(min=0)
    scale = (high - low) / LEVELS
    scale = scale.where(scale > 0, 1.0)
    zero = (-low / scale).round()
    return Quantised((values / scale + zero).round().clamp(0, LEVELS), scale, zero)


def dequantise(quantised: Quantised) -> Tensor:
    """z = s (q - p)."""
    return quantised.scale * (quantised.levels - quantised.zero)


def pack(values: Tensor, bits: int = 8) -> bytes:
    """The message for the encoder's output of one image, (B, h, w).

    With 8 bits: the scale as a float of 4 bytes, the zero point as one byte, and a byte per value.
    """
    plain = values.detach().float().cpu()
    if bits == 32:
        return plain.numpy().astype("<f4").tobytes()
    if bits == 16:
        return plain.clamp(-LARGEST_HALF, LARGEST_HALF).numpy().astype("<f2").tobytes()
    levels, scale, zero = quantise(plain[None])
    return HEADER.pack(float(scale), int(zero)) + levels.to(torch.uint8).numpy().tobytes()


def unpack(message: bytes, shape: tuple[int, ...], bits: int = 8) -> Tensor:
    """The values of a message, float32, of this shape.

    Raises:
        TutelageError: the message has another length.
    """
    content = message[HEADER.size :] if bits == 8 else message
    expected = bits // 8 * int(torch.Size(shape).numel())
    if len(content) != expected:
        raise TutelageError(
            f"a message of {len(message)} bytes does not hold {shape} values of {bits} bits; it needs "
            f"{expected + len(message) - len(content)}"
        )
    dtype = {8: torch.uint8, 16: torch.float16, 32: torch.float32}[bits]
    values = torch.frombuffer(bytearray(content), dtype=dtype).view(shape).float()
    if bits != 8:
        return values
    scale, zero = HEADER.unpack_from(message)
    return dequantise(Quantised(values, torch.tensor(scale), torch.tensor(float(zero))))


class Codec(nn.Module):
    """The way of the encoder's output to the server: unchanged in train mode, rounded to a few bits in eval mode.

    Args:
        bits: 8, each sample by its own range (``quantise``); 16 for half precision; 32 for no change.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        if bits not in (8, 16, 32):
            raise TutelageError(f"messages have 8, 16 or 32 bits a value, got {bits}")
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, h, w), unchanged shape."""
        if self.training or self.bits == 32:
            return values
        if self.bits == 16:
            return values.clamp(-LARGEST_HALF, LARGEST_HALF).half().to(values.dtype)
        return dequantise(quantise(values.float())).to(values.dtype)
