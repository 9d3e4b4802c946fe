"""The IDX files of MNIST and similar data sets (Fashion-MNIST, EMNIST, KMNIST): grey images and byte labels."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.memory import check_unpacked
from tutelage.data.npy import read_up_to
from tutelage.data.views import CropsAndFlips
from tutelage.errors import TutelageError, one_line


def load(folder: Path) -> Data:
    """Load the four files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte`` of a folder, gzipped or not.

    The spelling ``train-images.idx3-ubyte`` is supported too. Images are (N, H, W, 1) uint8. Class names are the
    numbers from 0 to the largest training label.

    Raises:
        TutelageError: a file is missing, damaged or truncated, or does not match its header.
    """
    train, test = _split(folder, "train"), _split(folder, "t10k")
    classes = tuple(str(c) for c in range(int(train.labels.max()) + 1)) if len(train) else ()
    return Data(f"idx:{folder}", classes, train, test, views=CropsAndFlips(pad=train.inputs.shape[1] // 8))


def _split(folder: Path, prefix: str) -> Split:
    image_file, label_file = _find(folder, f"{prefix}-images", "idx3"), _find(folder, f"{prefix}-labels", "idx1")
    images, labels = _read(image_file, dimensions=3), _read(label_file, dimensions=1)
    if len(images) != len(labels):
        raise TutelageError(
            f"{image_file} has {len(images)} images and {label_file} {len(labels)} labels; "
            "take both files from the same data set"
        )
    return Split.of(images.unsqueeze(3), labels.long())


def _find(folder: Path, stem: str, kind: str) -> Path:
    """Find the file with this stem in any of its spellings."""
    names = [f"{stem}{mark}{kind}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise TutelageError(f"{folder} has no {names[0]} (nor {names[1]}, nor either with .gz); put the file there")
    return file


def _read(file: Path, dimensions: int) -> Tensor:
    """The bytes of one file in the shape of its header: uint8 with ``dimensions`` dimensions.

    The header is big-endian: two zeros, the type (8: unsigned bytes), the number of dimensions, and the size of each.
    """
    with _opened(file) as stream:
        header = read_up_to(stream, 4 + 4 * dimensions)
        if len(header) < 4 + 4 * dimensions:
            raise TutelageError(f"{file} is truncated: {len(header)} bytes are too few for a header; fetch it again")
        magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
        if magic != 0x800 + dimensions:
            raise TutelageError(
                f"{file} starts with 0x{magic:08x}, not 0x{0x800 + dimensions:08x}: it is no IDX file of "
                f"unsigned bytes in {dimensions} dimension(s); put the right file there"
            )
        if 0 in shape[1:]:
            raise TutelageError(f"{file} claims images of {shape[1]}x{shape[2]} pixels; fetch it again")
        size = math.prod(shape)
        stored = file.stat().st_size
        check_unpacked(size if file.suffix == ".gz" else min(size, stored), stored, str(file))
        content = read_up_to(stream, size + 1)
    if len(content) != size:
        has = f"only {len(content)}" if len(content) < size else "more"
        raise TutelageError(f"{file} claims {size} bytes of shape {tuple(shape)} and has {has}; fetch it again")
    if not size:
        raise TutelageError(f"{file} is empty: it claims 0 samples")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


@contextmanager
def _opened(file: Path) -> Iterator[BufferedIOBase]:
    """Open the file for its decompressed bytes; decompression errors become a ``TutelageError``."""
    if file.suffix != ".gz":
        with file.open("rb") as stream:
            yield stream
        return
    try:
        with gzip.open(file, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error, MemoryError) as error:
        raise TutelageError(f"{file} is damaged ({one_line(error)}); fetch it again") from error
