"""Wavelets and spectra: the card's numbers, plain sums in float64, PyWavelets, perfect reconstruction."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.methods.audio_adversarial.spectra import (
    chroma,
    chroma_matrix,
    cosine_matrix,
    mel_matrix,
    power,
    tonnetz,
    tonnetz_matrix,
)
from tutelage.methods.audio_adversarial.wavelets import dyadic, frequencies, scalogram

RATE = 8000


def tone(hertz: float, samples: int = 8000) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / RATE)[None]


def noise(samples: int, count: int = 1) -> Tensor:
    return torch.randn(count, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# --- wavelets


def test_a_tone_peaks_at_the_nearest_frequency() -> None:
    """Card: 440 Hz on 64 frequencies from 60 to 3,600 Hz peaks at 421.6 Hz, whose neighbour is 449.9 Hz."""
    grid = frequencies(64, RATE)
    assert grid[0] == pytest.approx(60)
    assert grid[-1] == pytest.approx(3600)
    peak = int(scalogram(tone(440), 64, RATE)[0, :, 4000].argmax())
    assert float(grid[peak]) == pytest.approx(421.6, abs=0.1)
    assert float(grid[peak + 1]) == pytest.approx(449.9, abs=0.1)


def test_the_scalogram_equals_its_sum() -> None:
    """W(s, b) = s^-1/2 sum_n x_n conj(psi((n - b) / s)), written as plain loops, where the rate samples psi densely."""
    waves = noise(300)
    grid = frequencies(5, RATE)
    values = scalogram(waves, 5, RATE)[0]
    for row, frequency in enumerate(grid.tolist()[:-1]):
        scale = RATE / frequency
        for b in (0, 17, 150, 299):
            total = 0j
            for n, x in enumerate(waves[0].tolist()):
                t = (n - b) / scale
                psi = (math.pi * 1.5) ** -0.5 * math.exp(-(t**2) / 1.5) * cmath.exp(2j * math.pi * t)
                total += x * psi.conjugate()
            assert float(values[row, b]) == pytest.approx(abs(total) / math.sqrt(scale), rel=2e-3, abs=2e-3)


def test_the_scalogram_is_near_that_of_pywavelets() -> None:
    """PyWavelets differentiates an integral of the wavelet on a grid, so that it agrees to some per cent only."""
    pywt = pytest.importorskip("pywt")
    waves, grid = noise(2000), frequencies(32, RATE)
    middle = (grid > 100) & (grid < 600)
    expected, _ = pywt.cwt(waves[0].numpy(), (RATE / grid[middle]).numpy(), "cmor1.5-1.0", precision=16)
    actual = scalogram(waves, 32, RATE)[0, middle].numpy()
    assert np.abs(np.abs(expected) - actual).max() < 0.05 * actual.max()


@pytest.mark.parametrize("levels", [1, 3, 5, 6])
def test_the_dyadic_transform_keeps_the_energy_and_is_inverted_by_its_transpose(levels: int) -> None:
    waves = noise(512, 2).requires_grad_()
    parts = dyadic(waves, levels)
    assert [part.shape[1] for part in parts] == [512 // 2 ** (j + 1) for j in range(levels)] + [512 // 2**levels]
    energy = torch.stack([part.square().sum(1) for part in parts]).sum(0)
    torch.testing.assert_close(energy, waves.square().sum(1), rtol=1e-11, atol=0)
    inverse = torch.autograd.grad(parts, waves, [part.detach() for part in parts])[0]
    torch.testing.assert_close(inverse, waves.detach(), rtol=0, atol=1e-10)


def test_the_dyadic_transform_has_the_coefficients_of_pywavelets() -> None:
    """Up to a circular shift of each level, which PyWavelets centres differently."""
    pywt = pytest.importorskip("pywt")
    waves = noise(256)
    expected = pywt.wavedec(waves[0].numpy(), "db4", mode="periodization", level=3)
    for actual, other in zip(dyadic(waves, 3), [*expected[:0:-1], expected[0]], strict=True):
        shifts = [np.abs(np.roll(np.abs(other), k) - actual[0].abs().numpy()).max() for k in range(len(other))]
        assert min(shifts) < 1e-10


def test_smooth_signals_have_small_details() -> None:
    """db4 has four vanishing moments: details of a cubic polynomial are 0 away from the ends."""
    t = torch.linspace(-1, 1, 256, dtype=torch.float64)
    details = dyadic((t**3 - 2 * t + 1)[None], 2)
    assert details[0][0, 8:-8].abs().max() < 1e-10
    assert details[1][0, 8:-8].abs().max() < 1e-9


# --- spectra


def test_the_power_of_a_tone_is_in_its_bin_and_frames_are_centred() -> None:
    spectrum = power(tone(1000), 1024, 200)
    assert spectrum.shape == (1, 513, 41)
    assert int(spectrum[0, :, 20].argmax()) == 128  # 1000 Hz / (8000 / 1024)
    impulse = torch.zeros(1, 8000, dtype=torch.float64)
    impulse[0, 3000] = 1
    assert int(power(impulse, 1024, 200)[0].sum(0).argmax()) == 15
    frame = tone(440)[0, 4000 - 512 : 4000 + 512] * torch.hann_window(1024, dtype=torch.float64)
    expected = torch.fft.rfft(frame).abs().square()
    torch.testing.assert_close(power(tone(440), 1024, 200)[0, :, 20], expected)


def test_mel_filters_are_triangles_that_sum_to_one_between_their_peaks() -> None:
    filters = mel_matrix(20, 513, RATE)
    assert filters.min() >= 0
    assert filters.max() <= 1
    peaks = filters.argmax(1)
    assert (peaks.diff() > 0).all()
    inside = filters[:, int(peaks[0]) : int(peaks[-1])].sum(0)
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-9)


def test_the_cosines_are_orthonormal_and_those_of_scipy() -> None:
    from scipy.fft import dct

    matrix = cosine_matrix(40, 64)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(40, dtype=torch.float64))
    values = noise(64)[0]
    np.testing.assert_allclose((matrix @ values).numpy(), dct(values.numpy(), type=2, norm="ortho")[:40], atol=1e-12)


def test_the_chroma_of_440_hertz_peaks_at_a() -> None:
    """Card: bin 9. An octave higher it is the same class."""
    for hertz in (220.0, 440.0, 880.0):
        classes = chroma(chroma_matrix(513, RATE) @ power(tone(hertz, 40000), 1024, 200))[0, :, 100]
        assert int(classes.argmax()) == 9
        assert float(classes.max()) == 1
    assert int(chroma(chroma_matrix(513, RATE) @ power(tone(523.25, 40000), 1024, 200))[0, :, 100].argmax()) == 0  # C


def test_each_bin_is_divided_between_two_classes() -> None:
    matrix = chroma_matrix(513, RATE)
    sums = matrix.sum(0)
    assert ((sums - 1).abs() < 1e-9).sum() + (sums == 0).sum() == 513
    assert int((sums == 0).sum()) == math.ceil(55 / (RATE / 1024))
    assert ((matrix > 0).sum(0) <= 2).all()


def test_the_tonnetz_of_a_by_hand() -> None:
    """Card: (1, 0, -1, 0, 0, 0.5); norms of the pairs 1, 1, 0.5 for each class; 0 for a flat chroma and for silence."""
    one_hot = torch.zeros(1, 12, 1, dtype=torch.float64)
    one_hot[0, 9] = 3.0
    expected = torch.tensor([1, 0, -1, 0, 0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(tonnetz(one_hot)[0, :, 0], expected, rtol=0, atol=1e-12)
    norms = tonnetz_matrix().view(3, 2, 12).norm(dim=1)
    assert torch.allclose(norms, torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)[:, None].expand(3, 12))
    assert tonnetz(torch.full((1, 12, 1), 0.3, dtype=torch.float64)).abs().max() < 1e-12
    assert tonnetz(torch.zeros(1, 12, 2)).abs().max() == 0
    assert chroma(torch.zeros(1, 12, 2)).abs().max() == 0
