"""Common corruptions in five severities, computed on the device: after CIFAR-10-C.

Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019. The
strengths are those of the authors' make_cifar_c.py (github.com/hendrycks/robustness), used here for images of any size.
Eight of its nineteen corruptions are here; those that need pictures, a random field or a motion kernel are not.

Every corruption maps (B, C, H, W) pixels in [0, 1] to the same. They differ from the authors' in that nothing is
rounded down to 256 levels afterwards, and where a docstring says so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches, mix_seeds
from tutelage.errors import NonFiniteError
from tutelage.evaluation.predict import batch_logits, labelled_samples
from tutelage.models.modes import eval_mode

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of this standard deviation to each value. The generator is one of the CPU."""
    # An image at a time: a larger draw uses the generator in another order, and batches would be of influence.
    noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for _ in range(len(images))])
    return (images + std * noise.to(images)).clamp(0, 1)


def shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Draw each value from Poisson(photons x value) / photons. The generator is one of the CPU."""
    counts = torch.poisson((images * photons).cpu().contiguous(), generator=generator)
    return (counts.to(images) / photons).clamp(0, 1)


def impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set this share of the values, each for itself, to 0 or 1 with equal chance. The generator is one of the CPU."""
    drawn = torch.rand(images.shape, generator=generator).to(images)
    return images.masked_fill(drawn < share, 1.0).masked_fill(drawn < share / 2, 0.0)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of this many pixels, cut off at four sigma; the border's pixels go on outside."""

    def along(size: int) -> Tensor:
        reach = int(4 * sigma + 0.5)
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-0.5 * (offsets / sigma).square())
        sources = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
        matrix = torch.zeros(size, size).scatter_add(1, sources, (weights / weights.sum()).expand(size, -1))
        return matrix.to(images)

    return _transform(images, along).clamp(0, 1)


def contrast(images: Tensor, factor: float) -> Tensor:
    """Draw every value towards its image's and channel's mean, of which this factor of the distance is left."""
    mean = images.mean((2, 3), keepdim=True)
    return ((images - mean) * factor + mean).clamp(0, 1)


def brightness(images: Tensor, shift: float) -> Tensor:
    """Raise the value of hue, saturation, value, the largest channel, by this much.

    With hue and saturation kept, each channel grows by the factor that the largest one does; black becomes grey.
    """
    value = images.amax(1, keepdim=True)
    raised = (value + shift).clamp(max=1)
    return torch.where(value > 0, images * (raised / value), raised).clamp(0, 1)


def pixelate(images: Tensor, scale: float) -> Tensor:
    """Give each pixel the mean of its cell, in a grid of int(scale x side) cells a side.

    A pixel belongs to the cell that its centre lies in. That is what shrinking and growing again by Pillow's box filter
    does, apart from rounding.
    """

    def along(size: int) -> Tensor:
        cells = max(1, int(size * scale))
        cell = ((torch.arange(size) + 0.5) * cells / size).long()
        same = (cell[:, None] == cell).to(images)
        return same / same.sum(1, keepdim=True)

    return _transform(images, along).clamp(0, 1)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """What JPEG's baseline coding of this quality (1 to 100) loses.

    Three channels are taken as RGB: luma is coded in blocks of 8x8, chroma likewise at half the resolution (4:2:0), and
    is interpolated linearly afterwards. Any other number of channels counts as that many grey images. The quantisation
    tables are those of the standard's annex K, scaled as libjpeg does. Pillow's result differs by the rounding of what
    lies between the steps.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma_steps, chroma_steps = (
        ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255).to(images) for table in (LUMA_STEPS, CHROMA_STEPS)
    )
    if images.shape[1] != 3:
        return ((_coded(images * 255 - 128, luma_steps) + 128) / 255).clamp(0, 1)
    height, width = images.shape[2:]
    to_luma = torch.tensor([[0.299, 0.587, 0.114]]).to(images)
    to_chroma = torch.tensor([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]).to(images)
    luma = torch.einsum("kc,bchw->bkhw", to_luma, images) * 255
    chroma = torch.einsum("kc,bchw->bkhw", to_chroma, images) * 255
    luma = _coded(luma - 128, luma_steps) + 128
    chroma = F.pad(chroma, (0, width % 2, 0, height % 2), mode="replicate")
    chroma = _coded(F.avg_pool2d(chroma, 2), chroma_steps)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    to_rgb = torch.tensor([[0, 1.402], [-0.344136, -0.714136], [1.772, 0]]).to(images)
    return ((luma + torch.einsum("ck,bkhw->bchw", to_rgb, chroma)) / 255).clamp(0, 1)


LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
)


def _coded(maps: Tensor, steps: Tensor) -> Tensor:
    """Round the coefficients of each 8x8 block's orthonormal cosine transform to multiples of ``steps``."""
    height, width = maps.shape[2:]
    maps = F.pad(maps, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = maps.shape[2] // 8, maps.shape[3] // 8
    blocks = maps.reshape(*maps.shape[:2], rows, 8, columns, 8).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    place = torch.arange(8).double()
    cosines = torch.cos((2 * place + 1) * place[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    cosines = cosines.to(maps)
    coefficients = (cosines @ blocks @ cosines.T / steps).round() * steps
    decoded = (cosines.T @ coefficients @ cosines).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return decoded[..., :height, :width]


def _transform(images: Tensor, along: Callable[[int], Tensor]) -> Tensor:
    """Multiply every column by ``along(height)`` and every row by ``along(width)``."""
    return along(images.shape[2]) @ images @ along(images.shape[3]).T


@dataclass(frozen=True)
class Corruption:
    """A corruption with the strengths of its severities 1 to 5.

    Attributes:
        function: ``(images, strength)``, or ``(images, strength, generator)`` where it is random.
        strengths: one a severity.
        random: whether it draws.
    """

    function: Callable[..., Tensor]
    strengths: tuple[float, ...]
    random: bool = False

    def __call__(self, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        """Corrupt (B, C, H, W) pixels in [0, 1]; nothing is drawn from the generator unless it is random."""
        if severity not in SEVERITIES:
            raise ValueError(f"a severity is one of 1 to 5, got {severity}")
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
    """The CPU generator that one corruption of one severity draws from, from the first image to the last."""
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
    """The accuracy on a part under each of ``CORRUPTIONS``, at severities 1 to 5.

    Noise is a function of (seed, corruption, severity) and of the order of the samples: the same on every device and
    with every batch size. Each image is read once, however many corruptions there are.

    Args:
        model: maps raw pixels (B, C, H, W) in [0, 1] to logits; it is on ``device`` already.
        split: the part; samples without a label are left out.
        device: where to compute.
        seed: of the noise.
        batch_size: images at a time; of influence on speed and memory alone.
        workers: processes that read files.

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        TutelageError: no sample has a label, or the model's answer is no (B, K) tensor.
    """
    split, device = labelled_samples(split), torch.device(device)
    draws = {(name, severity): noise_generator(name, severity, seed) for name in CORRUPTIONS for severity in SEVERITIES}
    hits = {key: torch.zeros((), dtype=torch.int64, device=device) for key in draws}
    finite = {key: torch.ones((), dtype=torch.bool, device=device) for key in draws}
    with eval_mode(model), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for batch in evaluation_batches(split, device=device, batch_size=batch_size, workers=workers):
            for (name, severity), generator in draws.items():
                logits = batch_logits(model, CORRUPTIONS[name](batch.inputs, severity, generator))
                hits[name, severity] += (logits.argmax(1) == batch.targets).sum()
                finite[name, severity] &= logits.isfinite().all()
    for name, severity in draws:
        if not finite[name, severity]:
            raise NonFiniteError(
                f"the network's logits are NaN or infinite under {name} of severity {severity}: "
                "it cannot be judged there; look for a division by something that such an image makes 0"
            )
    return {name: [int(hits[name, severity]) / len(split) for severity in SEVERITIES] for name in CORRUPTIONS}
