"""Cached outputs of frozen teachers on evaluated splits."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from tutelage.errors import TutelageError, TutelageWarning
from tutelage.files import as_path, atomic_write
from tutelage.models.fingerprint import fingerprint
from tutelage.models.tapped import Tapped
from tutelage.models.weights import encode_weights, read_state

LARGEST_FILE = 256 * 2**20


class CachedEvaluation(nn.Module):
    """A network that saves its outputs for batches without gradients, and returns them for equal batches.

    Every run of a study compares its student with the same teacher on the same splits, and a large teacher takes
    longer for that than the training of a small student. Evaluation divides a split into the same batches each time, so
    that the saved outputs equal computed ones bit for bit.

    The file has one entry for each batch. ``save`` adds the new ones; a file that cannot be read is ignored. Outputs of
    more than ``LARGEST_FILE`` bytes in all are not saved.

    Args:
        network: a teacher or an ensemble of teachers, without random layers.
        members: the teachers, whose weights, normalisation and image size identify the file.
        folder: that of the cached teacher outputs.
    """

    def __init__(self, network: nn.Module, members: Sequence[Tapped], folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.network = network
        identity = [(fingerprint(member), member.mean.tolist(), member.std.tolist(), member.size) for member in members]
        key = hashlib.sha256(json.dumps([type(network).__name__, identity]).encode()).hexdigest()[:16]
        self.path = as_path(folder) / f"{key}-evaluation.safetensors"
        self._saved = _read(self.path)
        self._new: dict[str, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, ...) to the outputs of the network."""
        if torch.is_grad_enabled() or self.network.training or torch.is_autocast_enabled(inputs.device.type):
            output: Tensor = self.network(inputs)
            return output
        key = _key(inputs)
        saved = self._saved.get(key, self._new.get(key))
        if saved is None:
            saved = self._new[key] = self.network(inputs).cpu()
        return saved.to(inputs.device)

    def save(self) -> None:
        """Add the new outputs to the file. If they cannot be written there is a warning: nothing but time is lost."""
        entries = _read(self.path) | self._new
        if self._new and sum(values.nbytes for values in entries.values()) <= LARGEST_FILE:
            try:
                atomic_write(self.path, encode_weights(entries, {}, "cached outputs"))
            except TutelageError as error:
                warnings.warn(f"the teacher is evaluated again in each run: {error}", TutelageWarning, stacklevel=2)
        self._saved, self._new = entries, {}


def _read(path: Path) -> dict[str, Tensor]:
    with suppress(TutelageError, OSError):
        if path.exists():
            return dict(read_state(path)[0])
    return {}


def _key(inputs: Tensor) -> str:
    values = inputs.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{inputs.device.type} {values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
