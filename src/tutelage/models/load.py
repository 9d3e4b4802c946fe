"""A network from what a user writes: ``resnet20``, ``my_code:Net``, ``timm/NAME``, ``hf/NAME``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from tutelage.errors import TutelageError
from tutelage.models import zoo
from tutelage.models.doors.door import Built, Wanted
from tutelage.models.doors.imported import from_import
from tutelage.models.doors.timm import from_timm
from tutelage.models.doors.transformers import from_transformers
from tutelage.models.state import materialised
from tutelage.trust import Trust, check_trusted

_DOORS: Mapping[str, Callable[[str, str, Wanted], Built]] = MappingProxyType(
    {"timm/": from_timm, "hf/": from_transformers}
)


def make_model(
    spec: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    pretrained: bool = False,
    trust: Trust = True,
    named_in: str = "the configuration",
    normalised: bool = False,
) -> Built:
    """Build the network that ``spec`` names, for images of this shape and this many classes.

    Args:
        spec: one of

            - a name of the zoo: ``resnet20``, ``resnet8x4``, ``wrn-40-2``, ``mobilenetv2``, ``dcgan``;
            - ``module:attr``: import path and attribute, found from the current folder too, as with
              ``python -m``. The attribute is a class or function, called with those of ``num_classes``,
              ``in_channels``, ``image_shape`` and ``image_size`` that it takes, or an ``nn.Module``, which is
              copied;
            - ``file.py:attr``: the same of a Python file;
            - ``timm/NAME``: an architecture of timm;
            - ``hf/NAME``: a model of the Hugging Face hub or a folder written by ``save_pretrained``; always
              with its weights, only a classifier for another number of classes is new.
        num_classes: classes of the data.
        image_shape: (C, H, W).
        pretrained: with the published weights; for ``timm/NAME``.
        trust: whose code may be imported (``check_trusted``). All, since the caller wrote ``spec``; where a file says
            it, hand over what the user trusts.
        named_in: which file says it, for the error.
        normalised: the caller knows the mean and standard deviation already, so none is looked up.

    Raises:
        TutelageError: there is no such network, its package is missing, its code is not trusted, or building it failed.
    """
    check_trusted(spec, trust, named_in)
    if num_classes < 1 or len(image_shape) != 3 or min(image_shape) < 1:
        raise TutelageError(
            f"a model for {num_classes} classes and images of shape {tuple(image_shape)} cannot be built:"
            " give 1 class or more and (channels, height, width) of 1 or more"
        )
    wanted = Wanted(num_classes, image_shape, pretrained, normalised)
    for prefix, door in _DOORS.items():
        if spec.startswith(prefix):
            return door(spec, spec.removeprefix(prefix), wanted)
    if pretrained:
        raise TutelageError(
            f"no published weights for {spec!r}: pretrained goes with timm/NAME; load a weights file instead"
        )
    if ":" in spec:
        built = from_import(spec, wanted)
        materialised(built.module, torch.zeros(2, *image_shape))
        return built
    return Built(zoo.build(spec, num_classes=num_classes, image_shape=image_shape))
