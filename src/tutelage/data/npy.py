"""Read NumPy's format of one array safely from untrusted files."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zlib
from io import BufferedIOBase
from typing import IO
from zipfile import BadZipFile

import numpy as np

from tutelage.data.arrays import Array

DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, SyntaxError, OverflowError, RuntimeError, MemoryError),
    *(EOFError, BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)
"""The exceptions that NumPy and readers of zip archives raise for damaged or malicious files."""

CHUNK = 1 << 24  # bytes; a false size in a header must not cause a large allocation
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(stream: IO[bytes], size: int) -> Array:
    """Read the array in a stream of ``size`` bytes. Nothing is unpickled; no more memory than that is allocated.

    Raises:
        ValueError, and others of ``DAMAGE``: it is not such an array, or its header does not match its size.
    """
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"it is of version {version[0]}.{version[1]}, and plain arrays are of 1.0 or 2.0")
    shape, by_column, dtype = HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError("its values are Python objects, which are never unpickled (allow_pickle=False)")
    if not dtype.itemsize:
        raise ValueError(f"its values are {dtype}, which take no bytes")
    claimed, available = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or claimed != available:
        raise ValueError(f"its header claims shape {shape!s:.80}, {claimed!s:.40} bytes, and there are {available}")
    content = read_up_to(stream, available)
    if len(content) != available:
        raise ValueError(f"it ends after {len(content)} of {available} bytes")
    array = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    return array.reshape(shape, order="F" if by_column else "C")


def read_up_to(stream: IO[bytes] | BufferedIOBase, size: int) -> bytearray:
    """Read the next ``size`` bytes, or fewer at the end of the stream."""
    content = bytearray()
    while len(content) < size and (chunk := stream.read(min(CHUNK, size - len(content)))):
        content += chunk
    return content
