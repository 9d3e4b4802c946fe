"""Spectra of waveforms on a grid of frames: power, mel cepstrum, chroma and tonnetz."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REFERENCE, A = 440.0, 9
"""The pitch of A in Hz, and its number among the pitch classes C, C#, .. B."""

LOWEST_PITCH = 55.0
"""Hz below which a bin of the spectrum belongs to no pitch class: there bins are wider than a semitone."""


def power(waves: Tensor, window: int, hop: int) -> Tensor:
    """|STFT|^2 with Hann windows, of waveforms (B, L): (B, window / 2 + 1, 1 + L // hop).

    Frame t is centred on sample t hop; outside of the waveform samples are 0.
    """
    hann = torch.hann_window(window, dtype=waves.dtype, device=waves.device)
    spectrum = torch.stft(waves, window, hop, window=hann, center=True, pad_mode="constant", return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()


def mel_matrix(rows: int, bins: int, rate: int) -> Tensor:
    """Triangular filters, evenly spaced on the scale 2595 log10(1 + f / 700) from 0 Hz to rate / 2: (rows, bins)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, rows + 2, dtype=torch.float64) / 2595) - 1)
    centres = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    rising = (centres - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - centres) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def cosine_matrix(rows: int, inputs: int) -> Tensor:
    """The first rows of the orthonormal discrete cosine transform (DCT-II): (rows, inputs)."""
    k, n = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(inputs, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (n + 0.5) / inputs) * math.sqrt(2 / inputs)
    matrix[0] /= math.sqrt(2)
    return matrix


def chroma_matrix(bins: int, rate: int) -> Tensor:
    """The share of each bin of a spectrum in the pitch classes C .. B: (12, bins).

    A bin whose pitch is between two semitones is divided between them. Columns sum to 1, or 0 below 55 Hz.
    """
    hertz = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    pitch = 12 * torch.log2(hertz.clamp(min=1) / REFERENCE) + A
    apart = (pitch - torch.arange(12, dtype=torch.float64)[:, None] + 6) % 12 - 6
    return (1 - apart.abs()).clamp(min=0) * (hertz >= LOWEST_PITCH)


def chroma(spectrum: Tensor) -> Tensor:
    """The power of each pitch class, divided by the largest of its frame, (B, 12, T); silence is 0."""
    largest = spectrum.amax(1, keepdim=True)
    return spectrum / largest.where(largest > 0, 1.0)


def tonnetz_matrix() -> Tensor:
    """The coordinates of the twelve pitch classes on three circles: fifths, minor and major thirds, (6, 12).

    Rows 2 i and 2 i + 1 are r_i sin(phi_i l) and r_i cos(phi_i l), with phi = 7 pi / 6, 3 pi / 2, 2 pi / 3 and
    r = 1, 1, 1/2 (Harte, Sandler, Gasser 2006).
    """
    classes = torch.arange(12, dtype=torch.float64)
    rows = []
    for angle, radius in ((7 / 6, 1.0), (3 / 2, 1.0), (2 / 3, 0.5)):
        rows += [radius * torch.sin(math.pi * angle * classes), radius * torch.cos(math.pi * angle * classes)]
    return torch.stack(rows)


def tonnetz(chromagram: Tensor) -> Tensor:
    """The mean coordinates of the pitch classes, weighted by a chromagram: (B, 12, T) to (B, 6, T); silence is 0."""
    total = chromagram.sum(1, keepdim=True)
    return tonnetz_matrix().to(chromagram) @ (chromagram / total.where(total > 0, 1.0))
