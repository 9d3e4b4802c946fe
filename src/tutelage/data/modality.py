"""Modalities: the kind of a data set's inputs (images, vectors, tokens, waveforms)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tutelage.data.arrays import as_floats, as_images, as_integers, check_image_shape
from tutelage.data.images import Images
from tutelage.data.views import CropsAndFlips, NoAugmentation, Views
from tutelage.data.views.random_views import standard, strong
from tutelage.errors import TutelageError

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

SMALLEST_STD = 1e-6  # a channel that never varies is divided by 1


@dataclass(frozen=True, slots=True)
class Modality:
    """How stored samples become network inputs, a batch at a time, on the device.

    The base class of each kind of input. A stored batch is ``split.inputs[indices]``; a network input is always one
    tensor.
    """

    noun: ClassVar[str] = "inputs"
    """Their plural name in messages."""

    sample: ClassVar[str] = "input"
    """What one network input is called in messages."""

    unit: ClassVar[str] = ""
    """The unit of mean and standard deviation, in words; empty if networks do not normalise."""

    input_name: ClassVar[str] = "inputs"
    """The name of the input of exported networks."""

    unaugmented: ClassVar[Views] = NoAugmentation()
    """The views of data without augmentation."""

    @property
    def encoding(self) -> str:
        """What gives the values their meaning, such as the identity of a tokenizer; empty if they speak for themselves.

        A network is of use only for inputs of its own encoding, so weights files record it.
        """
        return ""

    def augmented(self, stored: tuple[int, ...]) -> Views:
        """The default augmentation of samples of this stored shape; by default none."""
        return self.unaugmented

    def named_views(self, name: str, stored: tuple[int, ...]) -> Views:
        """The augmentation ``crop``, ``standard`` or ``strong`` of samples of this stored shape.

        Raises:
            TutelageError: this kind of input has none.
        """
        raise TutelageError(f"the augmentation {name} is for images, and these are {self.noun}; leave it out")

    def store(self, inputs: object, what: str) -> Tensor:
        """Convert an array or a tensor to the stored form of inputs, (N, ...).

        Args:
            inputs: the values.
            what: the name of the array in error messages.

        Raises:
            TutelageError: another shape, dtype or range; the text says which is expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define store(inputs, what)")

    def check_files(self, inputs: Images, what: str) -> None:
        """Check inputs that are read from files when needed.

        Raises:
            TutelageError: their shape is wrong, or this kind of input must be in memory.
        """
        raise TutelageError(f"{what} are not an array; {self.noun} must be in memory, as a tensor or a NumPy array")

    def conversion(self, inputs: object) -> str | None:
        """The name of the conversion that ``store`` applies, for the record; ``None`` if values do not change."""
        return None

    def arrange(self, stored: Tensor) -> Tensor:
        """Stored inputs (B, ...) with the order of axes that networks expect."""
        return stored

    def to_input(self, arranged: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Arranged inputs as network inputs."""
        return arranged

    def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one network input, from that of one stored sample."""
        return stored

    def mean_std(self, batches: Iterator[Tensor]) -> MeanStd:
        """Mean and standard deviation of each channel that networks normalise by; 0 and 1 if they do not."""
        return (0.0,), (1.0,)

    def example(self, count: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """``count`` constant inputs of this shape, for counting operations, exporting and rebuilding networks."""
        return torch.full((count, *shape), 0.5, dtype=torch.float32, device=device)

    def model_arguments(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The keyword arguments about inputs that functions which build networks may take."""
        return {"input_shape": shape}


@dataclass(frozen=True, slots=True)
class Pixels(Modality):
    """Images (H, W, C) uint8; networks take (C, H, W) float32 in [0, 1]."""

    noun: ClassVar[str] = "images"
    sample: ClassVar[str] = "image"
    input_name: ClassVar[str] = "pixels"
    unit: ClassVar[str] = "pixels in [0, 1]"

    unaugmented: ClassVar[Views] = CropsAndFlips()

    def augmented(self, stored: tuple[int, ...]) -> Views:
        """Crops of images padded by an eighth of their height, and flips of coloured ones."""
        height, _, channels = stored
        return CropsAndFlips(pad=height // 8, flip=channels == 3)

    def named_views(self, name: str, stored: tuple[int, ...]) -> Views:
        """Padded crops, or random resized crops; flips of coloured images; ``strong`` also changes the pixels."""
        views = {"crop": self.augmented(stored), "standard": standard(stored[2]), "strong": strong(stored[2])}
        return views[name]

    def store(self, inputs: object, what: str) -> Tensor:
        """(N, H, W) or (N, H, W, C), uint8 or floats in [0, 1], to (N, H, W, C) uint8."""
        return as_images(inputs, what)

    def check_files(self, inputs: Images, what: str) -> None:
        """(N, H, W, C) with 1, 3 or 4 channels."""
        check_image_shape(inputs.shape, what)

    def conversion(self, inputs: object) -> str | None:
        """Floats are rounded to 256 levels; files are read as uint8."""
        dtype = str(getattr(inputs, "dtype", "uint8")).removeprefix("torch.")
        return None if dtype == "uint8" else "rounded_to_uint8"

    def arrange(self, stored: Tensor) -> Tensor:
        """(B, H, W, C) to (B, C, H, W), in the same memory."""
        return stored.permute(0, 3, 1, 2)

    def to_input(self, arranged: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """uint8 to float32 in [0, 1]."""
        return arranged.to(torch.float32, memory_format=layout).div_(255)

    def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W, C) to (C, H, W)."""
        height, width, channels = stored
        return channels, height, width

    def mean_std(self, batches: Iterator[Tensor]) -> MeanStd:
        """Of the pixels in [0, 1], each (C,)."""
        return _mean_std(stored.reshape(-1, stored.shape[-1]).double() / 255 for stored in batches)

    def model_arguments(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """``image_size`` is one number for square images."""
        channels, height, width = shape
        return {
            "in_channels": channels,
            "image_shape": shape,
            "image_size": height if height == width else (height, width),
        }


@dataclass(frozen=True, slots=True)
class Vectors(Modality):
    """Measurements (D,) or (L, D), float32; networks take them as they are, and normalise each of the D features."""

    noun: ClassVar[str] = "vectors"
    sample: ClassVar[str] = "vector"
    unit: ClassVar[str] = "features"

    def store(self, inputs: object, what: str) -> Tensor:
        """(N, D) or (N, L, D) finite numbers to float32."""
        return as_floats(inputs, what, "vectors (N, D) or (N, L, D)", axes=(2, 3), missing=False)

    def mean_std(self, batches: Iterator[Tensor]) -> MeanStd:
        """Of each feature, (D,); of (L, D) inputs, whose channels are no second axis, nothing is normalised."""
        batches = iter(batches)
        first = next(batches)
        if first.ndim != 2:
            return (0.0,), (1.0,)
        return _mean_std(batch.double() for batch in _prepend(first, batches))

    def model_arguments(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """``in_features`` is D."""
        return {"in_features": shape[-1], "input_shape": shape}


@dataclass(frozen=True, slots=True)
class Tokens(Modality):
    """Token numbers (L,) int64; network inputs are the same.

    Attributes:
        vocabulary: the number of tokens, including padding.
        padding: the token that fills shorter texts.
        tokenizer: the identity of the tokenizer (``tokenizer_identity``); empty if it is unknown.
    """

    vocabulary: int
    padding: int = 0
    tokenizer: str = ""

    noun: ClassVar[str] = "texts"
    sample: ClassVar[str] = "text"
    input_name: ClassVar[str] = "tokens"

    @property
    def encoding(self) -> str:
        """The tokenizer."""
        return self.tokenizer

    def store(self, inputs: object, what: str) -> Tensor:
        """(N, L) numbers of tokens, below the size of the vocabulary, to int64."""
        return as_integers(inputs, what, "token numbers (N, L)", low=0, high=self.vocabulary - 1)

    def example(self, count: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Texts of one repeated token that is not padding."""
        token = int(self.padding == 0)
        return torch.full((count, *shape), token, dtype=torch.int64, device=device)

    def model_arguments(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """``length`` is L."""
        return {"vocabulary": self.vocabulary, "padding": self.padding, "length": shape[0], "input_shape": shape}


@dataclass(frozen=True, slots=True)
class Waveforms(Modality):
    """Waveforms (L,) int16; networks take (1, L) float32 in [-1, 1).

    Attributes:
        rate: samples a second.
    """

    rate: int

    noun: ClassVar[str] = "waveforms"
    sample: ClassVar[str] = "waveform"
    input_name: ClassVar[str] = "waveforms"
    unit: ClassVar[str] = "samples in [-1, 1)"

    def store(self, inputs: object, what: str) -> Tensor:
        """(N, L) whole numbers of 16 bits to int16."""
        stored = as_integers(inputs, what, "waveforms (N, L)", low=-(2**15), high=2**15 - 1)
        return stored.to(torch.int16)

    def arrange(self, stored: Tensor) -> Tensor:
        """(B, L) to (B, 1, L)."""
        return stored[:, None]

    def to_input(self, arranged: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """int16 to float32 in [-1, 1)."""
        return arranged.to(torch.float32).div_(2**15)

    def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """(L,) to (1, L)."""
        return 1, *stored

    def mean_std(self, batches: Iterator[Tensor]) -> MeanStd:
        """Of all samples of all waveforms, (1,)."""
        return _mean_std(stored.reshape(-1, 1).double() / 2**15 for stored in batches)

    def model_arguments(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """``length`` is the number of samples, ``rate`` how many make a second."""
        return {"in_channels": 1, "length": shape[1], "rate": self.rate, "input_shape": shape}


def description(modality: Modality) -> dict[str, Any]:
    """The kind of inputs and its settings as plain values, from which ``described`` makes it again."""
    return {"kind": type(modality).__name__, **asdict(modality)}


def described(entry: object) -> Modality | None:
    """The kind of inputs of this module that a ``description`` describes; ``None`` for any other entry."""
    if not isinstance(entry, dict):
        return None
    settings = dict(entry)
    name = settings.pop("kind", None)
    kind = next((kind for kind in (Pixels, Vectors, Tokens, Waveforms) if kind.__name__ == name), None)
    try:
        return None if kind is None else kind(**settings)
    except TypeError:  # other settings
        return None


def check_encoding(network: str, encoding: str, modality: Modality, what: str) -> None:
    """Refuse a network that was trained on inputs of another encoding, as far as both are known.

    Args:
        network: its name in the message.
        encoding: of the inputs that it was trained on.
        modality: the kind of the present inputs.
        what: the present data set.

    Raises:
        TutelageError: the encodings differ.
    """
    if encoding and modality.encoding and encoding != modality.encoding:
        raise TutelageError(
            f"{network} was trained on {modality.noun} of another tokenizer ({encoding[:8]}) than that of {what} "
            f"({modality.encoding[:8]}), so the same numbers mean other tokens; use one tokenizer for both"
        )


def _prepend(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _mean_std(batches: Iterator[Tensor]) -> MeanStd:
    """Of the columns of float64 batches (B, C)."""
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    count = 0
    for batch in batches:
        total = total + batch.sum(0).cpu()
        squares = squares + batch.square().sum(0).cpu()
        count += len(batch)
    mean = torch.as_tensor(total) / count
    std = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0).sqrt()
    std[std < SMALLEST_STD] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
