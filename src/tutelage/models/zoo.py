"""The built-in networks by name: ``resnet20``, ``resnet8x4``, ``wrn-40-2``, ``mobilenetv2``."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tutelage.data.modality import Modality, Pixels
from tutelage.errors import TutelageError, unknown
from tutelage.models.barcode import BarcodeNet
from tutelage.models.gan import DCGAN, MLPGenerator
from tutelage.models.mobilenet import MobileNetV2
from tutelage.models.resnet import ResNet
from tutelage.models.wrn import WRN
from tutelage.text import value_text

_LARGEST_SIZE = 10_000
_MOST_PARAMETERS = 10**9


@dataclass(frozen=True, slots=True)
class Family:
    """How the names of a family of networks are read.

    Attributes:
        pattern: matches the whole name; its named groups are numbers, handed to the builder as arguments.
        builder: called with those, and with what it takes of ``num_classes``, ``in_channels`` and ``image_shape``.
        examples: names that work, for listings and for guesses at misspelt ones.
        description: one line for ``tutelage models``.
        paper: who proposed it.
    """

    pattern: re.Pattern[str]
    builder: Callable[..., nn.Module]
    examples: tuple[str, ...]
    description: str
    paper: str


_FAMILIES = MappingProxyType(
    {
        "resnet": Family(
            re.compile(r"resnet(?P<depth>[0-9]+)(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
            ResNet,
            (*(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110)), "resnet8x4", "resnet32x4"),
            "CIFAR ResNet of depth 6n+2: resnet<depth>, or resnet<depth>x<width> with all channels x width",
            "He, Zhang, Ren, Sun 2015, arXiv 1512.03385",
        ),
        "wrn": Family(
            re.compile(r"wrn-(?P<depth>[0-9]+)-(?P<width>[0-9]+)"),
            WRN,
            ("wrn-10-2", "wrn-16-2", "wrn-28-2", "wrn-40-2", "wrn-40-1", "wrn-28-10"),
            "wide ResNet of depth 6n+4: wrn-<depth>-<width>",
            "Zagoruyko, Komodakis 2016, arXiv 1605.07146",
        ),
        "mobilenetv2": Family(
            re.compile(r"mobilenetv2(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
            MobileNetV2,
            ("mobilenetv2", "mobilenetv2x0.5"),
            "small network for real pictures: mobilenetv2, or mobilenetv2x<width> with all channels x width",
            "Sandler et al. 2018, arXiv 1801.04381",
        ),
        "barcode": Family(
            re.compile(r"barcode(?P<width>[0-9]+)"),
            BarcodeNet,
            ("barcode8", "barcode24"),
            "reader of strings of 13 symbols: barcode<channels of the first convolution>",
            "after Do et al. 2020, arXiv 2004.06297",
        ),
        "dcgan": Family(
            re.compile(r"dcgan(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
            DCGAN,
            ("dcgan", "dcganx0.5", "dcganx2"),
            "generator of transposed convolutions: dcgan, or dcganx<width> with all channels x width",
            "Radford, Metz, Chintala 2015, arXiv 1511.06434",
        ),
        "mlp-gan": Family(
            re.compile(r"mlp-gan(?:x(?P<width>[0-9]+(?:\.[0-9]+)?))?"),
            MLPGenerator,
            ("mlp-gan", "mlp-ganx0.5"),
            "generator of four linear layers: mlp-gan, or mlp-ganx<width> with all hidden layers x width",
            "Goodfellow et al. 2014, arXiv 1406.2661",
        ),
    }
)


def families() -> Mapping[str, Family]:
    """The families that `build` knows, by their short names."""
    return _FAMILIES


def build(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    modality: Modality = Pixels(),  # noqa: B008
) -> nn.Module:
    """The named network with new weights, drawn from torch's global generator.

    Args:
        name: see ``families``.
        num_classes: outputs of a classifier.
        input_shape: (C, H, W) of the images that it takes or makes, or the shape of another input.
        modality: what the inputs are.

    Raises:
        TutelageError: no family reads this name, or its depth or width does not exist.
    """
    for family in _FAMILIES.values():
        if match := family.pattern.fullmatch(name):
            sizes = {key: _number(text) for key, text in match.groupdict().items() if text is not None}
            offers = {"num_classes": num_classes, **modality.offers(input_shape)}
            takes = inspect.signature(family.builder).parameters
            if any(each.default is each.empty and key not in {*offers, *sizes} for key, each in takes.items()):
                raise TutelageError(
                    f"{name} is no network for {modality.noun}; name one of your own, as module:attr, or hf/NAME"
                )
            build = functools.partial(
                family.builder, **sizes, **{key: value for key, value in offers.items() if key in takes}
            )
            _check_size(name, build)
            return build()
    examples = [example for family in _FAMILIES.values() for example in family.examples]
    raise unknown("model", name, examples, "Networks from elsewhere: module:attr (your own code), timm/NAME, hf/NAME.")


def _number(text: str) -> int | float:
    value = float(text)
    if value > _LARGEST_SIZE:
        raise TutelageError(f"a network of size {value_text(text)} is too large: sizes go up to {_LARGEST_SIZE:,}")
    return value if "." in text else int(text)


class _Undrawn(TorchFunctionMode):
    """Within it, weights are not drawn: on the meta device that would import torch's compiler, which takes seconds."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return named["tensor"] if "tensor" in named else args[0]
        return function(*args, **named)


def _check_size(name: str, build: Callable[[], nn.Module]) -> None:
    """Refuse what does not fit into memory, before any of it is taken: on the meta device a tensor has no data."""
    with torch.device("meta"), _Undrawn():
        parameters = sum(parameter.numel() for parameter in build().parameters())
    if parameters > _MOST_PARAMETERS:
        raise TutelageError(
            f"{value_text(name)} would have {parameters:.2g} parameters, more than {_MOST_PARAMETERS:.0e}: choose a"
            " smaller depth or width"
        )
