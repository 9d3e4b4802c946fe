"""Tables of predictions as CSV files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.files import as_path, atomic_write, check_new
from tutelage.text import csv_text


def save_table(file: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows as a new CSV file; a ``'`` precedes texts that a spreadsheet would read as formulas.

    The entries of lists are separated by ``|``.

    Args:
        file: which must not exist.
        rows: plain values by column, the same columns in each.
        columns: if there may be no row.

    Raises:
        TutelageError: the file exists or cannot be written.
    """
    check_new(as_path(file))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*(rows[0] if rows else columns)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    atomic_write(file, stream.getvalue().encode())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    return csv_text("|".join(map(str, value)) if isinstance(value, list) else str(value))
