"""The result, the requirements and the errors that all loaders of external models share."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from tutelage.data.modality import Modality
from tutelage.errors import TutelageError, one_line

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A network, and the normalisation and size of the images that its weights were trained on.

    Attributes:
        module: images (B, C, H, W) to logits (B, num_classes), or a generator from latents (B, ``latent``) to images.
        mean_std: mean and standard deviation per channel, for pixels in [0, 1], with which images must be normalised.
            ``None`` if the weights are new or the network normalises its inputs itself; the caller then chooses.
        input_size: (C, H, W) of the images that the weights were trained on; ``None`` if unknown.
        classes: the names of the classes in the order of the logits, where the weights tell.
        from_instance: whether it is a copy of a user's ``nn.Module``, so that every copy has the same weights.
    """

    module: nn.Module
    mean_std: MeanStd | None = None
    input_size: tuple[int, int, int] | None = None
    from_instance: bool = False
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The requirements for a network.

    Attributes:
        num_classes: of the data; 0 keeps the classes of the published weights.
        input_shape: shape of one input.
        modality: kind of the inputs.
        pretrained: load the published weights.
        normalised: mean and standard deviation are known already, so do not look them up.
        own_size: published weights keep their image size, whatever that of ``input_shape``.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    modality: Modality
    pretrained: bool
    normalised: bool = False
    own_size: bool = False

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that a user's function may accept."""
        return {"num_classes": self.num_classes, **self.modality.model_arguments(self.input_shape)}

    def image_shape(self, spec: str) -> tuple[int, int, int]:
        """(C, H, W), for a network that takes images.

        Raises:
            TutelageError: the data has no images.
        """
        if len(self.input_shape) != 3:
            raise TutelageError(f"{spec!r} takes images, and the data has {self.modality.noun}; choose another network")
        channels, height, width = self.input_shape
        return channels, height, width


def import_extra(spec: str, package: str, extra: str, advice: str = "") -> Any:
    """Import an optional package.

    Raises:
        TutelageError: it is missing or fails to import; the message says how to install it, followed by ``advice``.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package that does not match torch may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise TutelageError(f"{spec!r} needs the extra: pip install 'tutelage[{extra}]'{advice}") from error
        raise TutelageError(
            f"{spec!r} needs {package}, which is installed and cannot be imported: {one_line(error)};"
            f" try pip install --upgrade 'tutelage[{extra}]'{advice}"
        ) from error


@contextmanager
def build_errors(spec: str) -> Iterator[None]:
    """Turn any exception of the block into a one-line ``TutelageError``."""
    try:
        yield
    except Exception as error:
        raise TutelageError(
            f"{spec!r} cannot be built: {type(error).__name__}: {one_line(error)}; check the name, the image"
            " size and, for published weights, the connection"
        ) from error


def mean_std_of(mean: Iterable[float] | None, std: Iterable[float] | None, channels: int) -> MeanStd | None:
    """Mean and standard deviation for this many channels; if the weights have another number, the averages over it."""
    if mean is None or std is None:
        return None
    return _for_channels(mean, channels), _for_channels(std, channels)


def _for_channels(values: Iterable[float], channels: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """The end of an error message: the most similar candidate, if one is similar enough."""
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
