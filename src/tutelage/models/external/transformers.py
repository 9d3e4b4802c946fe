"""``hf/NAME``: an image classifier of transformers."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.external.common import BuiltModel, MeanStd, ModelSpec, build_errors, import_extra, mean_std_of


class LogitsOf(nn.Module):
    """A transformers image classifier as an ordinary network: images in, logits out.

    ``network`` is the model itself, for ``save_pretrained``, and its weights keep the names they have there.
    Grey images are repeated for a network that was made for colour.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.channels = channels

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The model's own, under its own names."""
        return self.network.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Into the model itself."""
        return self.network.load_state_dict(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 1 or channels, H, W) to logits (B, num_classes)."""
        if x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def from_transformers(spec: str, name: str, requirements: ModelSpec) -> BuiltModel:
    """A model of the hub or of a folder, always with its weights."""
    transformers = import_extra(spec, "transformers", extra="hf")
    channels = requirements.image_shape(spec)[0]
    with build_errors(spec):
        network = transformers.AutoModelForImageClassification.from_pretrained(
            name,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,  # never ask, and never run, code that comes with weights
            **({"num_labels": requirements.num_classes} if requirements.num_classes else {}),
        )
    taken = getattr(network.config, "num_channels", channels)
    if channels not in (1, taken):
        raise TutelageError(
            f"{spec!r} takes images of {taken} channels and the data has {channels}:"
            " choose another model or convert the images"
        )
    side = getattr(network.config, "image_size", None)
    height_width = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    size = None if side is None else (taken, *height_width)
    known = None if requirements.normalised else _processor_mean_std(transformers, spec, name, channels)
    return BuiltModel(LogitsOf(network, taken), known, size)


def _processor_mean_std(transformers: Any, spec: str, name: str, channels: int) -> MeanStd | None:
    """What ``preprocessor_config.json`` says; the processor itself wants more packages."""
    try:
        facts, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # no such file, no network, ...: each version has its own error for it
        facts = {}
    if facts.get("do_normalize") is False:
        return (0.0,) * channels, (1.0,) * channels
    found = mean_std_of(facts.get("image_mean"), facts.get("image_std"), channels)
    if found is None:
        warnings.warn(
            f"{spec!r} has no preprocessor_config.json with a mean and a standard deviation: its images will"
            " not be normalised as in its training; put that file beside its weights",
            TutelageWarning,
            stacklevel=4,  # where make_model was called
        )
    return found
