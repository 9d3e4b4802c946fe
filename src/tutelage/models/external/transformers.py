"""``hf/NAME``: classifiers of Hugging Face transformers, for images here and for texts in ``text_classifier``."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from tutelage.data.modality import Tokens
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.external.common import BuiltModel, MeanStd, ModelSpec, build_errors, import_extra, mean_std_of
from tutelage.models.external.text_classifier import text_classifier


class LogitsOf(nn.Module):
    """A transformers image classifier as a network from images to logits.

    ``network`` is the transformers model, for example for ``save_pretrained``; its keys do not change. Grey images are
    repeated to the number of channels that it expects.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.channels = channels

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The state of the transformers model, under its own keys."""
        return self.network.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Load the state of the transformers model."""
        return self.network.load_state_dict(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1 or channels, H, W) to logits (B, num_classes)."""
        if x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def from_transformers(spec: str, name: str, requirements: ModelSpec) -> BuiltModel:
    """A model of the hub or of a folder, always with its weights.

    Raises:
        TutelageError: transformers is missing, the model cannot be loaded, or it takes other channels.
    """
    if isinstance(requirements.modality, Tokens):
        return text_classifier(spec, name, requirements, requirements.modality)
    transformers = import_extra(spec, "transformers", extra="hf")
    channels = requirements.image_shape(spec)[0]
    with build_errors(spec):
        network = transformers.AutoModelForImageClassification.from_pretrained(
            name,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,  # never run code that comes with weights
            **({"num_labels": requirements.num_classes} if requirements.num_classes else {}),
        )
    expected = getattr(network.config, "num_channels", channels)
    if channels not in (1, expected):
        raise TutelageError(
            f"{spec!r} takes images of {expected} channels and the data has {channels}:"
            " choose another model or convert the images"
        )
    side = getattr(network.config, "image_size", None)
    height_width = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    size = None if side is None else (expected, *height_width)
    mean_std = None if requirements.normalised else _processor_mean_std(transformers, spec, name, channels)
    return BuiltModel(LogitsOf(network, expected), mean_std, size)


def _processor_mean_std(transformers: Any, spec: str, name: str, channels: int) -> MeanStd | None:
    """Mean and standard deviation in ``preprocessor_config.json``; loading the processor itself needs more packages."""
    try:
        config, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # no file, no connection, ...; the error depends on the version
        config = {}
    if config.get("do_normalize") is False:
        return (0.0,) * channels, (1.0,) * channels
    mean_std = mean_std_of(config.get("image_mean"), config.get("image_std"), channels)
    if mean_std is None:
        warnings.warn(
            f"{spec!r} has no preprocessor_config.json with a mean and a standard deviation: its images will"
            " not be normalised as in its training; put that file next to its weights",
            TutelageWarning,
            stacklevel=4,  # where make_model was called
        )
    return mean_std
