"""Two wavelet transforms of waveforms: the magnitudes of complex Morlet wavelets, and the dyadic transform db4."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BANDWIDTH, CENTRE = 1.5, 1.0
"""Of the complex Morlet wavelet ``cmor1.5-1.0``."""

LOWEST, HIGHEST = 60.0, 0.45
"""The lowest frequency of a scalogram in Hz, and its highest as a share of the rate."""

_LOW = (
    0.23037781330885523, 0.7148465705525415, 0.6308807679295904, -0.02798376941698385,
    -0.18703481171888114, 0.030841381835986965, 0.032883011666982945, -0.010597401784997278,
)  # fmt: skip
"""The low-pass filter of Daubechies' wavelet with four vanishing moments (Daubechies 1988)."""


def frequencies(rows: int, rate: int) -> Tensor:
    """Frequencies in Hz from 60 to 0.45 times the rate, evenly spaced in logarithm: (rows,) float64."""
    exponents = torch.linspace(0, 1, rows, dtype=torch.float64)
    return LOWEST * (HIGHEST * rate / LOWEST) ** exponents


def scalogram(waves: Tensor, rows: int, rate: int) -> Tensor:
    """The magnitudes |W(s, b)| of the continuous wavelet transform at scales s = rate / f, in samples.

        W(s, b) = s^-1/2 sum_n x_n conj(psi((n - b) / s)),   psi(t) = (pi 1.5)^-1/2 exp(-t^2 / 1.5) exp(2 pi i t)

    computed by the Fourier transform of psi, exp(-1.5 pi^2 (f - 1)^2). Outside of the waveform x is 0.

    Args:
        waves: x, (B, L) samples.
        rows: the number of frequencies, see ``frequencies``.
        rate: samples a second.

    Returns:
        (B, rows, L), at least 0, the lowest frequency first.
    """
    length = waves.shape[1]
    scales = rate / frequencies(rows, rate).to(waves)
    support = math.ceil(4 * float(scales.max()))  # beyond it the wavelet is below 1e-4 of its peak
    size = 2 ** math.ceil(math.log2(length + support))
    spectrum = torch.fft.fft(waves, size)
    cycles = torch.fft.fftfreq(size, device=waves.device, dtype=waves.dtype)  # per sample
    response = scales.sqrt()[:, None] * torch.exp(-BANDWIDTH * (math.pi * (scales[:, None] * cycles - CENTRE)) ** 2)
    magnitudes: Tensor = torch.fft.ifft(spectrum[:, None] * response, dim=2)[..., :length].abs()
    return magnitudes


def dyadic(waves: Tensor, levels: int) -> list[Tensor]:
    """The discrete wavelet transform db4 of a periodic signal: an orthonormal change of basis.

    Args:
        waves: (B, L) samples; L is a multiple of 2^levels, with L / 2^(levels - 1) at least 8.
        levels: the number of halvings.

    Returns:
        The details of each level, (B, L / 2), (B, L / 4), ..., and last the approximation of the coarsest level.
        Entry k of level j is centred within 2^j samples of sample k 2^j.
    """
    low = torch.tensor(_LOW, dtype=waves.dtype, device=waves.device)
    high = low.flip(0) * torch.tensor([1.0, -1.0], dtype=waves.dtype, device=waves.device).repeat(4)
    filters = torch.stack([low, high])[:, None]
    parts, approximation = [], waves[:, None]
    for _ in range(levels):
        both = F.conv1d(F.pad(approximation, (3, 4), mode="circular"), filters, stride=2)
        approximation = both[:, :1]
        parts.append(both[:, 1])
    return [*parts, approximation[:, 0]]
