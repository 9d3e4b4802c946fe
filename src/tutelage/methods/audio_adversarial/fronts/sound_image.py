"""Waveforms as images: a spectrogram, scalogram or wavelet transform, and optionally pitch classes below it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError
from tutelage.methods.audio_adversarial.spectra import chroma, chroma_matrix, cosine_matrix, mel_matrix, power, tonnetz
from tutelage.methods.audio_adversarial.wavelets import dyadic, scalogram
from tutelage.text import value_text

Representation = Literal["stft", "mfcc", "scalogram", "db4"]

ROWS, MELS, COEFFICIENTS, LEVELS = 64, 64, 40, 6
FLOOR = -80.0
"""Decibels below the largest value of a clip, at which smaller ones are clipped."""

_TINY = 1e-10  # power that the logarithm adds, so that its gradient is bounded


class Clip(nn.Module):
    """max(x, -80); it has no gradient below, which an attack may replace."""

    def forward(self, decibels: Tensor) -> Tensor:
        """(B, F, T) to the same shape."""
        return decibels.clamp(min=FLOOR)


class SoundImage(nn.Module):
    """Waveforms to images in [0, 1] of size x size pixels, differentiable, as a layer.

    All blocks have 1 + L // hop columns, of which column t is centred on sample t hop, with frames of 50 ms and a hop
    of 25 ms. ``stft``: |STFT|^2 in decibels; ``mfcc``: 40 cepstral coefficients of 64 mel bands in decibels;
    ``scalogram``: log(1 + |W|) with 64 Morlet wavelets, the mean of each frame; ``db4``: the magnitudes of the details
    of 6 levels, the mean of each frame. Decibels are relative to the largest value of the clip, from -80.

    With ``tonal`` 12 rows of chroma and 6 of tonnetz follow below. Each block is scaled to [0, 1] by its minimum and
    maximum in the clip, without a gradient through these. The image is then scaled bilinearly to size x size.

    Args:
        representation: see above.
        tonal: whether chroma and tonnetz follow.
        rate: samples a second.
        size: of the images, in pixels.
        mean, std: the normalisation of the waveforms, which the layer removes.
        image_mean, image_std: the normalisation of the images, which it applies.
    """

    mels: Tensor
    cosines: Tensor
    pitches: Tensor

    def __init__(
        self,
        representation: Representation,
        *,
        tonal: bool,
        rate: int,
        size: int,
        mean: float = 0.0,
        std: float = 1.0,
        image_mean: float = 0.0,
        image_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.representation, self.tonal, self.rate, self.size = representation, tonal, rate, size
        self.mean, self.std, self.image_mean, self.image_std = mean, std, image_mean, image_std
        self.hop = max(1, rate // 40)
        self.window = 2 ** round(math.log2(0.128 * rate))  # 1024 at 8 kHz, 2048 at 16 kHz
        bins = self.window // 2 + 1
        self.clip: nn.Module = Clip()
        self.block: Callable[[Tensor], Tensor] = getattr(self, f"_{representation}")
        self.register_buffer("mels", mel_matrix(MELS, bins, rate).float(), persistent=False)
        self.register_buffer("cosines", cosine_matrix(COEFFICIENTS, MELS).float(), persistent=False)
        self.register_buffer("pitches", chroma_matrix(bins, rate).float(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised waveforms (B, 1, L) to normalised images (B, 1, size, size)."""
        return (self.images(inputs * self.std + self.mean) - self.image_mean) / self.image_std

    def images(self, waves: Tensor) -> Tensor:
        """Waveforms (B, 1, L) in [-1, 1) to images (B, 1, size, size) in [0, 1]."""
        with torch.autocast(waves.device.type, enabled=False):
            stacked = torch.cat([scaled(block) for block in self.blocks(waves[:, 0].float())], 1)[:, None]
            shape = (self.size, self.size)
            return F.interpolate(stacked, shape, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)

    def blocks(self, waves: Tensor) -> list[Tensor]:
        """Waveforms (B, L) to the blocks of the image, (B, rows, 1 + L // hop) each, not scaled."""
        blocks = [self.block(waves)]
        if self.tonal:
            classes = chroma(self.pitches @ power(waves, self.window, self.hop))
            blocks += [classes, tonnetz(classes)]
        return blocks

    def _stft(self, waves: Tensor) -> Tensor:
        return self._decibels(power(waves, self.window, self.hop))

    def _mfcc(self, waves: Tensor) -> Tensor:
        return self.cosines @ self._decibels(self.mels @ power(waves, self.window, self.hop))

    def _scalogram(self, waves: Tensor) -> Tensor:
        return torch.log1p(self._frames(scalogram(waves, ROWS, self.rate)))

    def _db4(self, waves: Tensor) -> Tensor:
        length = waves.shape[1]
        padded = F.pad(waves, (0, -length % 2**LEVELS))
        details = dyadic(padded, LEVELS)[:-1]
        rows = [detail.abs().repeat_interleave(2 ** (level + 1), 1)[:, :length] for level, detail in enumerate(details)]
        return self._frames(torch.stack(rows[::-1], 1))  # the lowest frequencies first

    def _decibels(self, spectrum: Tensor) -> Tensor:
        decibels = 10 * torch.log10(spectrum + _TINY)
        clipped: Tensor = self.clip(decibels - decibels.detach().amax((1, 2), keepdim=True))
        return clipped

    def _frames(self, values: Tensor) -> Tensor:
        """The means of (B, F, L) over the frames, (B, F, 1 + L // hop)."""
        return F.avg_pool1d(values, 2 * self.hop, self.hop, self.hop, count_include_pad=False)


def scaled(block: Tensor) -> Tensor:
    """A block (B, F, T) of each clip from its minimum and maximum to 0 and 1; a constant one is 0."""
    low, high = block.detach().amin((1, 2), keepdim=True), block.detach().amax((1, 2), keepdim=True)
    return (block - low) / (high - low).where(high > low, 1.0)


def build(
    example: Tensor,
    *,
    representation: Representation,
    tonal: bool,
    rate: int,
    size: int,
    mean: float,
    std: float,
    image_mean: float,
    image_std: float,
) -> SoundImage:
    """The layer.

    Args:
        example: waveforms, (B, 1, L).
        representation, tonal, rate, size, mean, std, image_mean, image_std: see ``SoundImage``.

    Raises:
        TutelageError: the inputs are not waveforms, they are too short, there is no such representation, or the rate
            or the size is too small.
    """
    if representation not in get_args(Representation):
        names = ", ".join(get_args(Representation))
        raise TutelageError(f"the representation must be one of {names}, got {value_text(representation)}")
    if example.ndim != 3 or example.shape[1] != 1:
        raise TutelageError(
            f"only waveforms (1, L) become sound images, and the inputs have shape {tuple(example.shape[1:])}; "
            "give data such as wav:FOLDER"
        )
    if rate < 1000 or size < 8:
        raise TutelageError(
            f"a sound image needs a rate of 1000 or more and a size of 8 or more, got {rate} and {size}"
        )
    shortest = 8 * 2 ** (LEVELS - 1)
    if example.shape[2] < shortest:
        raise TutelageError(f"waveforms of {example.shape[2]} samples are too short; give {shortest} or more")
    if not (std > 0 and image_std > 0 and all(map(math.isfinite, (mean, std, image_mean, image_std)))):
        raise TutelageError(f"the standard deviations must be above 0, got {std} and {image_std}")
    front = SoundImage(
        representation, tonal=bool(tonal), rate=int(rate), size=int(size), mean=mean, std=std,
        image_mean=image_mean, image_std=image_std,
    )  # fmt: skip
    return front.to(example.device)
