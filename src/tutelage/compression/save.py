"""The files in which compressed networks are compared."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tutelage.compression.page import page
from tutelage.compression.variants import Compression
from tutelage.files import as_path, atomic_write

SUMMARY, PAGE = "compression.json", "compression.html"


def save_compression(compression: Compression, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``compression.json`` and ``compression.html`` into a folder, and return their paths."""
    target = as_path(folder)
    contents = {
        SUMMARY: json.dumps(compression.summary(), indent=1, allow_nan=False) + "\n",
        PAGE: page(compression),
    }
    for name, text in contents.items():
        atomic_write(target / name, text.encode())
    return [target / name for name in contents]
