"""The file ``samples.safetensors`` of a run: the results of its method for each training sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from tutelage.models.weights_reading import read_safetensors
from tutelage.runs.folder import SAMPLES
from tutelage.runs.header import SAMPLES_DIGEST, check_digest


def save_samples(folder: Path, samples: Mapping[str, Tensor], write: Callable[[Path, bytes], None]) -> dict[str, str]:
    """Write the file, unless there is nothing to write; returns its digest, an entry of the result."""
    if not samples:
        return {}
    content = save(dict(samples))
    write(folder / SAMPLES, content)
    return {SAMPLES_DIGEST: hashlib.sha256(content).hexdigest()}


def read_samples(folder: Path) -> dict[str, Tensor]:
    """Read the file of a finished run.

    Raises:
        TutelageError: the file is missing or damaged.
    """
    file = folder / SAMPLES
    check_digest(file)
    return read_safetensors(str(file))[0]
