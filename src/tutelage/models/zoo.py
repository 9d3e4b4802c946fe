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

_MAX_SIZE = 10_000
_MAX_PARAMETERS = 10**9


@dataclass(frozen=True, slots=True)
class Family:
    """A family of networks, selected by the pattern of their names.

    Attributes:
        pattern: matches the whole name; its named groups are numbers, which are passed to the builder.
        builder: called with these, and with those of ``num_classes``, ``in_channels`` and ``image_shape`` it accepts.
        examples: valid names, for listings and for suggestions.
        description: one line for ``tutelage models``.
        paper: the source.
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
            "small network for photographs: mobilenetv2, or mobilenetv2x<width> with all channels x width",
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
    """The families by their short names."""
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
        input_shape: (C, H, W) of the images that the network takes or generates, or the shape of another input.
        modality: kind of the inputs.

    Raises:
        TutelageError: no family has this name, the family has no network of this size, or it takes other inputs.
    """
    for family in _FAMILIES.values():
        if match := family.pattern.fullmatch(name):
            sizes = {key: _number(text) for key, text in match.groupdict().items() if text is not None}
            offers = {"num_classes": num_classes, **modality.model_arguments(input_shape)}
            parameters = inspect.signature(family.builder).parameters
            if any(p.default is p.empty and key not in {*offers, *sizes} for key, p in parameters.items()):
                raise TutelageError(
                    f"{name} is no network for {modality.noun}; name your own network as module:attr, or hf/NAME"
                )
            build = functools.partial(
                family.builder, **sizes, **{key: value for key, value in offers.items() if key in parameters}
            )
            _check_size(name, build)
            return build()
    examples = [example for family in _FAMILIES.values() for example in family.examples]
    raise unknown("model", name, examples, "Networks from elsewhere: module:attr (your own code), timm/NAME, hf/NAME.")


def _number(text: str) -> int | float:
    value = float(text)
    if value > _MAX_SIZE:
        raise TutelageError(f"a network of size {value_text(text)} is too large: sizes go up to {_MAX_SIZE:,}")
    return value if "." in text else int(text)


class _NoInitialisation(TorchFunctionMode):
    """Skips the initialisation of weights, which on the meta device imports torch's compiler and takes seconds."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        keywords = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return keywords["tensor"] if "tensor" in keywords else args[0]
        return function(*args, **keywords)


def _check_size(name: str, build: Callable[[], nn.Module]) -> None:
    """Refuse a network that is too large before it takes any memory, by building it on the meta device."""
    with torch.device("meta"), _NoInitialisation():
        parameters = sum(parameter.numel() for parameter in build().parameters())
    if parameters > _MAX_PARAMETERS:
        raise TutelageError(
            f"{value_text(name)} would have {parameters:.2g} parameters, more than {_MAX_PARAMETERS:.0e}: choose a"
            " smaller depth or width"
        )
