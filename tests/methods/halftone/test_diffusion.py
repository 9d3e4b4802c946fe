"""Error diffusion: closed forms, conservation, and the scan in plain loops."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tutelage.methods.halftone.diffusion import KERNELS, Kernel, diffused, nearest_level, soft_level

FLOYD = KERNELS["floyd_steinberg"]


def scanned(image: Tensor, kernel: Kernel, levels: int, *, serpentine: bool) -> tuple[Tensor, float]:
    """The sequential scan of (H, W) in plain loops, and the sum of the lost shares of errors."""
    height, width = image.shape
    values, dots, lost = image.clone(), torch.zeros_like(image), 0.0
    for row in range(height):
        backwards = serpentine and row % 2 == 1
        for column in reversed(range(width)) if backwards else range(width):
            value = values[row, column]
            dots[row, column] = sum(bool(value >= (k - 0.5) / (levels - 1)) for k in range(1, levels)) / (levels - 1)
            error = value - dots[row, column]
            for down, right, share in kernel:
                target = row + down, column - right if backwards else column + right
                if target[0] < height and 0 <= target[1] < width:
                    values[target] += share * error
                else:
                    lost += float(share * error)
    return dots, lost


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_kernels_are_those_of_the_literature() -> None:
    assert {(down, right): 16 * share for down, right, share in FLOYD} == {
        (0, 1): 7,
        (1, -1): 3,
        (1, 0): 5,
        (1, 1): 1,
    }
    assert len(KERNELS["jarvis"]) == 12
    for kernel in KERNELS.values():
        assert sum(share for _, _, share in kernel) == pytest.approx(1)
        assert all(down > 0 or right > 0 for down, right, _ in kernel)


@pytest.mark.parametrize("serpentine", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 5])
@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parallel_scans_equal_the_loop_bit_for_bit(
    name: str, levels: int, serpentine: bool, dtype: torch.dtype
) -> None:
    batch = images(2, 2, 9, 7).to(dtype)
    dots, errors = diffused(batch, KERNELS[name], partial(nearest_level, levels=levels), serpentine=serpentine)
    for image, result, error in zip(batch.flatten(0, 1), dots.flatten(0, 1), errors.flatten(0, 1), strict=True):
        expected, lost = scanned(image, KERNELS[name], levels, serpentine=serpentine)
        assert torch.equal(result, expected)
        # What is neither in a dot nor lost at an edge is in the image: the sum is conserved.
        assert float(result.sum()) + lost == pytest.approx(float(image.sum()), abs=1e-4)
        assert error.abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 3)])
def test_small_images(shape: tuple[int, int]) -> None:
    for name, kernel in KERNELS.items():
        for serpentine in (False, True):
            dots, _ = diffused(images(1, 1, *shape), kernel, nearest_level, serpentine=serpentine)
            expected, _ = scanned(images(*shape), kernel, 2, serpentine=serpentine)
            assert torch.equal(dots[0, 0], expected), (name, serpentine)


def test_two_pixels_of_the_card() -> None:
    """0.4 is below a half; its error makes the second one 0.4 + 0.175. A threshold would give (0, 0)."""
    dots, errors = diffused(torch.tensor([[[[0.4, 0.4]]]]), FLOYD, nearest_level)
    assert dots.tolist() == [[[[0.0, 1.0]]]]
    torch.testing.assert_close(errors, torch.tensor([[[[0.4, -0.425]]]]))


@pytest.mark.parametrize("serpentine", [False, True])
def test_density_equals_the_grey_value(serpentine: bool) -> None:
    grey = torch.arange(0, 11).view(1, 11, 1, 1) / 10
    dots, _ = diffused(grey.expand(1, 11, 64, 64), FLOYD, nearest_level, serpentine=serpentine)
    density = dots.mean((2, 3))[0]
    assert set(dots.unique().tolist()) == {0.0, 1.0}
    assert (density - grey.flatten()).abs().max() < 0.02
    assert density[0] == 0
    assert density[10] == 1
    assert abs(float(density[5]) - 0.5) < 0.01
    alternate = dots[0, 5, :, 1:] != dots[0, 5, :, :-1]
    assert alternate.float().mean() > 0.9  # close to a checkerboard


def test_the_cards_measured_density() -> None:
    dots, _ = diffused(torch.full((1, 1, 32, 32), 0.3), FLOYD, nearest_level)
    assert float(dots.mean()) == pytest.approx(0.2949, abs=5e-5)


@pytest.mark.parametrize("serpentine", [False, True])
def test_a_halftone_is_its_own_halftone(serpentine: bool) -> None:
    once, _ = diffused(images(2, 3, 12, 10), FLOYD, nearest_level, serpentine=serpentine)
    twice, errors = diffused(once, FLOYD, nearest_level, serpentine=serpentine)
    assert torch.equal(twice, once)
    assert (errors == 0).all()


@pytest.mark.parametrize("kind", ["constant", "ramp", "noise"])
def test_densities_equal_those_of_pillow(kind: str) -> None:
    """Pillow computes Floyd-Steinberg in integers: local densities agree, not each dot."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = {"constant": torch.full((64, 64), 0.35), "ramp": (rows + columns) / 126, "noise": images(64, 64)}[kind]
    levels = (image * 255).round().to(torch.uint8)
    expected = torch.from_numpy(np.array(Image.fromarray(levels.numpy(), "L").convert("1"))).float()
    dots, _ = diffused((levels / 255)[None, None], FLOYD, nearest_level)
    assert abs(float(dots.mean() - expected.mean())) < 0.01
    pooled, by_pillow = (torch.nn.functional.avg_pool2d(part.view(1, 1, 64, 64), 8) for part in (dots, expected))
    assert (pooled - by_pillow).abs().max() < 0.1
    assert (pooled - by_pillow).abs().mean() < 0.02


def test_soft_levels_approach_the_levels_and_have_gradients() -> None:
    values = torch.linspace(-0.2, 1.2, 200, dtype=torch.float64)
    for levels in (2, 4):
        steep = soft_level(values, levels, slope=1e4)
        away = ((values * (levels - 1) - 0.5) % 1 - 0.5).abs() < 0.49
        torch.testing.assert_close(steep[away], nearest_level(values, levels)[away], atol=1e-6, rtol=0)
    small = images(1, 1, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diffused(x, FLOYD, soft_level)[0], small)
    assert torch.autograd.gradcheck(lambda x: diffused(x, FLOYD, soft_level, serpentine=True)[0], small)
