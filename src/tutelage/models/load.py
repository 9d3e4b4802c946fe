"""Building a network from its name: ``resnet20``, ``my_code:Net``, ``timm/NAME``, ``hf/NAME``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tutelage.data.modality import Modality, Pixels
from tutelage.errors import TutelageError
from tutelage.models import zoo
from tutelage.models.external.common import BuiltModel, ModelSpec
from tutelage.models.external.timm import from_timm
from tutelage.models.external.transformers import from_transformers
from tutelage.models.external.user_code import from_import
from tutelage.models.state import initialise_lazy_layers
from tutelage.trust import Trust, check_trusted

_LIBRARIES: Mapping[str, Callable[[str, str, ModelSpec], BuiltModel]] = MappingProxyType(
    {"timm/": from_timm, "hf/": from_transformers}
)


def is_imported(spec: str) -> bool:
    """Whether ``spec`` names a user's code: ``module:attr`` or ``file.py:attr``."""
    return ":" in spec and not spec.startswith(tuple(_LIBRARIES))


def make_model(
    spec: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    modality: Modality = Pixels(),  # noqa: B008 - a frozen value
    pretrained: bool = False,
    trust: Trust = True,
    named_in: str = "the configuration",
    normalised: bool = False,
    own_size: bool = False,
) -> BuiltModel:
    """Build the network that ``spec`` names.

    Args:
        spec: one of

            - a built-in network: ``resnet20``, ``resnet8x4``, ``wrn-40-2``, ``mobilenetv2``, ``dcgan``;
            - ``module:attr``: an import path, also relative to the current folder as with ``python -m``, and an
              attribute. The attribute is an ``nn.Module``, which is copied, or a class or function that returns one. It
              is called with those of ``num_classes``, ``in_channels``, ``image_shape`` and ``image_size`` (or the
              arguments in ``modality.offers``) that it accepts;
            - ``file.py:attr``: the same for a Python file;
            - ``timm/NAME``: an architecture of timm;
            - ``hf/NAME``: a model of the Hugging Face hub, or a folder written by ``save_pretrained``. It always has
              its weights; for another number of classes only its classifier is new.
        num_classes: the number of classes, or of outputs in other tasks. 0 keeps the classes of the published weights,
            for data without named classes.
        input_shape: shape of one input; (C, H, W) for images.
        modality: kind of the inputs.
        pretrained: load the published weights; for ``timm/NAME``.
        trust: whose code may be imported (``check_trusted``). The default trusts all code, as the caller wrote
            ``spec``; if ``spec`` comes from a file, pass what the user trusts.
        named_in: the file that contains ``spec``, for the error message.
        normalised: mean and standard deviation are known already, so do not look them up.
        own_size: published weights keep their image size, whatever that of ``input_shape``.

    Raises:
        TutelageError: there is no such network, its package is missing, its code is not trusted, or building it failed.
    """
    check_trusted(spec, trust, named_in)
    published = pretrained and spec.startswith(tuple(_LIBRARIES))
    if num_classes < (0 if published else 1) or min(input_shape, default=0) < 1:
        raise TutelageError(
            f"a model for {num_classes} classes and {modality.noun} of shape {tuple(input_shape)} cannot be built:"
            " give 1 class or more, and a shape of 1 or more along each axis"
        )
    requirements = ModelSpec(num_classes, input_shape, modality, pretrained, normalised, own_size)
    for prefix, load in _LIBRARIES.items():
        if spec.startswith(prefix):
            return load(spec, spec.removeprefix(prefix), requirements)
    if pretrained:
        raise TutelageError(
            f"no published weights for {spec!r}: pretrained needs timm/NAME; load a weights file instead"
        )
    if ":" in spec:
        built = from_import(spec, requirements)
        initialise_lazy_layers(built.module, modality.example(2, input_shape))
        return built
    return BuiltModel(zoo.build(spec, num_classes=num_classes, input_shape=input_shape, modality=modality))
