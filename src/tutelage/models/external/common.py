"""What the doors to other people's networks share."""

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
    """A network, and what is known of the images that its weights were trained on.

    Attributes:
        module: images (B, C, H, W) to logits (B, num_classes); a generator: latents (B, ``latent``) to images.
        mean_std: mean and standard deviation of each of the C channels, for pixels in [0, 1], that the images
            must be normalised with; ``None`` where the weights are new or the network does it itself, and the
            caller chooses.
        input_size: (C, H, W) of the images that the weights were trained on; ``None`` where unknown.
        from_instance: whether it is a copy of one network of the user's, so that any other copy has the same weights.
    """

    module: nn.Module
    mean_std: MeanStd | None = None
    input_size: tuple[int, int, int] | None = None
    from_instance: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the network is for.

    Attributes:
        num_classes: of the data; 0 for those of the published weights.
        input_shape: of one of its inputs.
        modality: what its inputs are.
        pretrained: whether it comes with its published weights.
        normalised: whether its mean and standard deviation are known already, so that none has to be looked up.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    modality: Modality
    pretrained: bool
    normalised: bool = False

    def arguments(self) -> dict[str, Any]:
        """What a user's factory may take by name."""
        return {"num_classes": self.num_classes, **self.modality.offers(self.input_shape)}

    def image_shape(self, spec: str) -> tuple[int, int, int]:
        """(C, H, W), for a network that takes images.

        Raises:
            TutelageError: the data has none.
        """
        if len(self.input_shape) != 3:
            raise TutelageError(f"{spec!r} takes images, and the data has {self.modality.noun}; choose another network")
        channels, height, width = self.input_shape
        return channels, height, width


def import_extra(spec: str, package: str, extra: str, advice: str = "") -> Any:
    """Import an optional package, or say how to get it, with further advice."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package at odds with torch fails with anything, not only ImportError
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise TutelageError(f"{spec!r} needs the extra: pip install 'tutelage[{extra}]'{advice}") from error
        raise TutelageError(
            f"{spec!r} needs {package}, which is installed and cannot be imported: {one_line(error)};"
            f" try pip install --upgrade 'tutelage[{extra}]'{advice}"
        ) from error


@contextmanager
def build_errors(spec: str) -> Iterator[None]:
    """Within it, whatever goes wrong is an error of one line."""
    try:
        yield
    except Exception as error:
        raise TutelageError(
            f"{spec!r} cannot be built: {type(error).__name__}: {one_line(error)}; check the name, the image"
            " size and, for published weights, the connection"
        ) from error


def mean_std_of(mean: Iterable[float] | None, std: Iterable[float] | None, channels: int) -> MeanStd | None:
    """Both for this many channels: where the weights saw another number, each is the average over those."""
    if mean is None or std is None:
        return None
    return _for_channels(mean, channels), _for_channels(std, channels)


def _for_channels(values: Iterable[float], channels: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: the name that may have been meant, if one is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
