"""Common corruptions of images in five severities, as in CIFAR-10-C.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019. The
strengths are those of the authors' make_cifar_c.py (github.com/hendrycks/robustness) for images of any size. Eight of
its nineteen corruptions are implemented; those that need other images, a random field or a motion kernel are not.

Every corruption maps pixels (B, C, H, W) in [0, 1] to pixels of the same shape and range. Unlike the authors'
code, none but ``jpeg`` rounds pixels to 256 levels. Docstrings name other differences.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.errors import NonFiniteError
from tutelage.evaluation.predict import batch_logits, labelled_samples
from tutelage.models.modes import eval_mode

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of this standard deviation to each value. The generator must be on the CPU."""
    # One image at a time: a larger draw uses the generator in another order, so results would depend on the batch size.
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for _ in range(len(images))])
    return (images + std * noise.to(images)).clamp(0, 1)


def shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Draw each value from Poisson(photons x value) / photons. The generator must be on the CPU."""
    counts = torch.poisson((images * photons).cpu().contiguous(), generator=generator)
    return (counts.to(images) / photons).clamp(0, 1)


def impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set each value, with this probability, to 0 or 1 with equal chance. The generator must be on the CPU."""
    uniform = torch.rand(images.shape, generator=generator).to(images)
    return images.masked_fill(uniform < share, 1.0).masked_fill(uniform < share / 2, 0.0)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of this many pixels, truncated at four sigma; border pixels are replicated."""

    def along(size: int) -> Tensor:
        reach = int(4 * sigma + 0.5)
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (offsets / sigma).square())
        sources = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
        matrix = torch.zeros(size, size).scatter_add(1, sources, (weights / weights.sum()).expand(size, -1))
        return matrix.to(images)

    return _transform(images, along).clamp(0, 1)


def contrast(images: Tensor, factor: float) -> Tensor:
    """Scale the difference of every value to the mean of its image and channel by this factor."""
    mean = images.mean((2, 3), keepdim=True)
    return ((images - mean) * factor + mean).clamp(0, 1)


def brightness(images: Tensor, shift: float) -> Tensor:
    """Add this to the value in HSV (the largest channel), with hue and saturation unchanged.

    Each channel is scaled by the factor of the largest one; black becomes grey.
    """
    value = images.amax(1, keepdim=True)
    raised = (value + shift).clamp(max=1)
    return torch.where(value > 0, images * (raised / value), raised).clamp(0, 1)


def pixelate(images: Tensor, scale: float) -> Tensor:
    """Replace each pixel by the mean of its cell, in a grid of int(scale x side) cells per side.

    A pixel belongs to the cell that contains its centre. Except for rounding, this equals downsampling and upsampling
    by Pillow's box filter.
    """

    def along(size: int) -> Tensor:
        cells = max(1, int(size * scale))
        cell = ((torch.arange(size) + 0.5) * cells / size).long()
        same = (cell[:, None] == cell).to(images)
        return same / same.sum(1, keepdim=True)

    return _transform(images, along).clamp(0, 1)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Encode and decode each image as JPEG of this quality (1 to 100), by Pillow on the CPU.

    Pixels are rounded to 256 levels first. Images of three channels are RGB; each channel of others is a grey image.
    """
    levels = (images.detach() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    if images.shape[1] == 3:
        pixels = levels.permute(0, 2, 3, 1).numpy()
        decoded = torch.stack([_jpeg_round_trip(each, quality) for each in pixels]).permute(0, 3, 1, 2)
    else:
        decoded = torch.stack([_jpeg_round_trip(each, quality) for each in levels.flatten(0, 1).numpy()])
        decoded = decoded.reshape(images.shape)
    return decoded.to(images) / 255


def _jpeg_round_trip(pixels: npt.NDArray[np.uint8], quality: int) -> Tensor:
    """(H, W) or (H, W, 3) as JPEG and back."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))


def _transform(images: Tensor, along: Callable[[int], Tensor]) -> Tensor:
    """Multiply every column by ``along(height)`` and every row by ``along(width)``."""
    return along(images.shape[2]) @ images @ along(images.shape[3]).T


@dataclass(frozen=True)
class Corruption:
    """A corruption with the strengths of its severities 1 to 5.

    Attributes:
        function: ``(images, strength)``, or ``(images, strength, generator)`` if it is random.
        strengths: one for each severity.
        random: whether it uses a generator.
    """

    function: Callable[..., Tensor]
    strengths: tuple[float, ...]
    random: bool = False

    def __call__(self, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        """Corrupt pixels (B, C, H, W) in [0, 1]; the generator is used only if the corruption is random."""
        if severity not in SEVERITIES:
            raise ValueError(f"a severity must be one of 1 to 5, got {severity}")
        strength = self.strengths[severity - 1]
        return self.function(images, strength, generator) if self.random else self.function(images, strength)


CORRUPTIONS: Mapping[str, Corruption] = MappingProxyType(
    {
        "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), random=True),
        "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50), random=True),
        "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), random=True),
        "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
        "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
        "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
        "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
        "jpeg": Corruption(jpeg, (80, 65, 58, 50, 40)),
    }
)


def noise_generator(name: str, severity: int, seed: int = 0) -> torch.Generator:
    """The CPU generator of one corruption and severity, for all images in order."""
    return torch.Generator().manual_seed(mix_seeds(seed, zlib.crc32(name.encode()), severity))


@default_settings()
def corruption_accuracies(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    batch_size: int = 512,
    workers: int = 2,
) -> dict[str, list[float]]:
    """The accuracy on a split under each of ``CORRUPTIONS``, at severities 1 to 5.

    Noise depends on the seed, corruption, severity and order of the samples alone: it is the same on every device and
    with every batch size. Each image is read once for all corruptions.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it must be on ``device``.
        split: the samples; those without a label are left out.
        device: the device of the computation.
        seed: of the noise.
        batch_size: images per batch; it affects speed and memory only.
        workers: processes that read files.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        TutelageError: no sample has a label, or the model does not return a tensor (B, K).
    """
    split, device = labelled_samples(split), torch.device(device)
    generators = {
        (name, severity): noise_generator(name, severity, seed) for name in CORRUPTIONS for severity in SEVERITIES
    }
    hits = {key: torch.zeros((), dtype=torch.int64, device=device) for key in generators}
    finite = {key: torch.ones((), dtype=torch.bool, device=device) for key in generators}
    with eval_mode(model), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for batch in evaluation_batches(split, device=device, batch_size=batch_size, workers=workers):
            for (name, severity), generator in generators.items():
                logits = batch_logits(model, CORRUPTIONS[name](batch.inputs, severity, generator))
                hits[name, severity] += (logits.argmax(1) == batch.targets).sum()
                finite[name, severity] &= logits.isfinite().all()
    for name, severity in generators:
        if not finite[name, severity]:
            raise NonFiniteError(
                f"the network's logits are NaN or infinite under {name} of severity {severity}: "
                "it cannot be evaluated there; look for a division by a value that is 0 for such images"
            )
    return {name: [int(hits[name, severity]) / len(split) for severity in SEVERITIES] for name in CORRUPTIONS}
