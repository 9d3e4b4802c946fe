"""The built-in networks by name: ``resnet20``, ``resnet8x4``, ``wrn-40-2``, ``mobilenetv2``.

Each family is a part (``tutelage.parts``) of the kind ``networks``: a file with the network's classes and ``FAMILY``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tutelage.data.modality import Modality, Pixels
from tutelage.errors import TutelageError, unknown
from tutelage.models.family import Family
from tutelage.parts import import_part, part_names
from tutelage.text import value_text

_MAX_SIZE = 10_000
_MAX_PARAMETERS = 10**9


def families() -> dict[str, Family]:
    """All families, by the names of their files."""
    return dict(_families())


def _families() -> Iterator[tuple[str, Family]]:
    """As ``families``; each file is imported when its turn comes."""
    return ((name, import_part("networks", name).FAMILY) for name in part_names("networks"))


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
    for _, family in _families():
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
    examples = [example for family in families().values() for example in family.examples]
    similar = get_close_matches(name, examples, 6, 0.5)  # all families would be too many for one line
    listed = similar or [family.examples[0] for family in families().values()]
    elsewhere = "tutelage models lists more; your own networks are module:attr, others timm/NAME or hf/NAME."
    raise unknown("model", name, listed, elsewhere)


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
