"""Files of conditions: a matrix, or columns of labels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tutelage.data.formats.npz import Archive
from tutelage.data.memory import check_unpacked
from tutelage.data.npy import DAMAGE, read_npy
from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path
from tutelage.parsing import parse_json

Reader = TypeVar("Reader", bound=Callable[..., Any])
READ_ERRORS = (*DAMAGE, csv.Error)


@dataclass(frozen=True)
class Columns:
    """The names of all columns of a file, and the requested columns that exist, (N,) int64."""

    names: Sequence[str]
    selected: Mapping[str, NDArray[np.int64]]


def read_matrix(file: str | Path) -> NDArray[np.float64]:
    """The numbers in a ``.csv`` without header, an ``.npy`` or a ``.json`` file, whatever their shape.

    Raises:
        TutelageError: it cannot be read, or holds something other than numbers.
    """
    with _one_line_errors("a matrix of numbers", file):
        return _reader({".csv": _csv_matrix, ".npy": _npy_matrix, ".json": _json_matrix}, file)(as_path(str(file)))


def read_columns(file: str | Path, requested: Sequence[str]) -> Columns:
    """The requested columns, if they exist, of an ``.npz`` or a ``.csv`` whose first line names them.

    Raises:
        TutelageError: it cannot be read, or a requested column is not one whole number per row.
    """
    with _one_line_errors("labels", file):
        columns = _reader({".npz": _npz_columns, ".csv": _csv_columns}, file)(as_path(str(file)), requested)
    sizes = {name: len(column) for name, column in columns.selected.items()}
    if len(set(sizes.values())) > 1:
        raise TutelageError(f"the columns of {file} have different lengths, {sizes}; give each sample one row")
    return columns


def _reader(readers: Mapping[str, Reader], file: str | Path) -> Reader:
    """The reader for the suffix of this file."""
    suffix = Path(file).suffix.lower()
    path = as_path(str(file))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise TutelageError(f"{file} is no ordinary file; name one of {', '.join(readers)}")
    if suffix not in readers:
        raise TutelageError(f"cannot tell what {str(file)!r} is; save it as one of {', '.join(readers)}")
    return readers[suffix]


@contextmanager
def _one_line_errors(what: str, file: str | Path) -> Iterator[None]:
    """Turn reading errors of a file into one-line messages."""
    try:
        yield
    except OSError as error:
        raise TutelageError(
            f"cannot read {file}: {error.strerror or one_line(error)}; check the path, which starts from {Path.cwd()}"
        ) from error
    except READ_ERRORS as error:
        raise TutelageError(f"{file} does not hold {what} ({one_line(error)}); write them as plain text") from error


def _csv_matrix(path: Path) -> NDArray[np.float64]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return np.array([[float(cell) for cell in row] for row in csv.reader(stream) if row], dtype=np.float64)


def _npy_matrix(path: Path) -> NDArray[np.float64]:
    with path.open("rb") as stream:
        size = path.stat().st_size
        check_unpacked(size, size, str(path))
        array = read_npy(stream, size)
    if array.dtype.kind not in "fiub":
        raise TypeError("it is no array of numbers")
    return array.astype(np.float64)


def _json_matrix(path: Path) -> NDArray[np.float64]:
    return np.array(parse_json(path.read_text(encoding="utf-8-sig")), dtype=np.float64)


def _npz_columns(path: Path, requested: Sequence[str]) -> Columns:
    with path.open("rb") as stream:
        archive = Archive(path, stream, "an array for each column of labels")
        columns = {name: archive.read(name) for name in requested if name in archive.keys}
    for name, array in columns.items():
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise TutelageError(f"{name} of {path} is {array.dtype} of shape {array.shape}; labels are (N,) integers")
    return Columns(archive.keys, {name: array.astype(np.int64) for name, array in columns.items()})


def _csv_columns(path: Path, requested: Sequence[str]) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        names = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    columns: dict[str, NDArray[np.int64]] = {}
    for name in set(requested) & set(names):
        position = names.index(name)
        columns[name] = np.zeros(len(rows), np.int64)
        for number, (line, row) in enumerate(rows):
            try:
                columns[name][number] = int(row[position])
            except (ValueError, IndexError, OverflowError) as error:
                cell = repr(row[position]) if position < len(row) else "missing"
                raise TutelageError(
                    f"{name} of {path} is {cell} in line {line}; labels are whole numbers, -1 for none"
                ) from error
    return Columns(names, columns)
