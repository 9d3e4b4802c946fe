"""The weights of a trained network from which a student starts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.errors import TutelageError
from tutelage.models.attach import find_classifier
from tutelage.models.state_fit import check_fit, without_prefix
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_state
from tutelage.runs.classes import warn_of_class_names
from tutelage.runs.header import Header
from tutelage.runs.locate import locate


@dataclass(frozen=True)
class InitialWeights:
    """Weights from which a student starts, read once.

    Attributes:
        name: a run's folder or ``MODEL@WEIGHTS``, as the user typed it.
        spec: the network that the file belongs to.
        file: the weights file.
        header: the file's metadata.
        state: the weights by the file's keys.
    """

    name: str
    spec: str
    file: Path
    header: Header
    state: Mapping[str, Tensor]

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def load(self, student: Tapped, data: Data) -> tuple[Tapped, tuple[str, ...]]:
        """Copy the weights into a student; a classifier for another number of classes stays as it is.

        Args:
            student: a new student; its network is changed in place.
            data: the student's data.

        Returns:
            The student, with the normalisation that the file records, and the names of the tensors that were not
            loaded, none if the whole network was.

        Raises:
            TutelageError: the weights belong to another network, or the normalisation to other channels.
        """
        network = student.module
        own = network.state_dict()
        state = without_prefix(dict(self.state), own)
        classifier = _classifier_of_other_classes(network, state, own, data)
        try:
            check_fit(str(self.file), type(network).__name__, {**state, **classifier}, own)
        except TutelageError as error:
            remedy = f"the student can start from weights of its own network only, and these are of {self.spec}"
            raise TutelageError(f"init: {error}; {remedy}") from error
        network.load_state_dict({**state, **classifier})
        if not classifier:
            warn_of_class_names(self.name, self.header.classes, data)
        recorded = self.header.mean_std(data.input_shape[0])
        if recorded is not None and not student.has_normalisation(*recorded):
            student = student.with_normalisation(*recorded)
        return student, tuple(classifier)

    def describe(self, new: tuple[str, ...], data: Data) -> str:
        """One line: what was loaded, and which tensors ``new`` keep random weights."""
        if not new:
            return f"all weights from {self.name}"
        count = len(self.header.classes)
        classes = f"{count or 'other'} classes there, {data.num_classes} here"
        return f"weights from {self.name} without the classifier ({classes}): {' and '.join(new)} start at random"

    def record(self, new: tuple[str, ...]) -> dict[str, Any]:
        """The entry ``init`` of ``result.json``: the name, a hash of the weights, and the tensors not loaded."""
        return {"weights": self.name, "fingerprint": self.fingerprint, "not_loaded": list(new)}


def open_initial_weights(name: str) -> InitialWeights:
    """Read the weights of a run's folder or of ``MODEL@WEIGHTS``.

    Raises:
        TutelageError: there are no such weights, or the file is damaged.
    """
    location = locate(name)
    if location is None:
        raise TutelageError(
            f"init takes a run's folder or MODEL@WEIGHTS; for {name} use --pretrained (pretrained=True)"
        )
    spec, file, header = location
    return InitialWeights(name, spec, file, header, read_state(file)[0])


def _classifier_of_other_classes(
    network: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor], data: Data
) -> dict[str, Tensor]:
    """The network's own classifier, by key, if the file's is for another number of classes; else empty."""
    differing = [key for key, value in own.items() if key in state and state[key].shape != value.shape]
    if not differing:
        return {}
    try:
        layer = find_classifier(network, data.modality.example(2, data.input_shape))
    except TutelageError:
        return {}  # ``check_fit`` names the tensors that differ
    classifier = {f"{layer}.{name}" for name in ("weight", "bias")}
    if not {*differing} <= classifier or any(state[key].shape[1:] != own[key].shape[1:] for key in differing):
        return {}
    return {key: own[key] for key in differing}
