"""Corruptions against Pillow, SciPy, colorsys and closed forms; ranges, random draws and batch sizes."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.errors import NonFiniteError
from tutelage.evaluation import CORRUPTIONS, accuracy, corruption_accuracies
from tutelage.evaluation.corruptions import (
    SEVERITIES,
    brightness,
    contrast,
    gaussian_blur,
    gaussian_noise,
    impulse_noise,
    jpeg,
    noise_generator,
    pixelate,
    shot_noise,
)
from tutelage.models.tapped import Tapped

Refused = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Twelve 32x32 crops of two colour photographs."""
    full_photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    corners = [(left, top) for left in (0, 200, 400) for top in (0, 200)]
    return [photo.crop((x, y, x + 128, y + 128)).resize((32, 32)) for photo in full_photos for x, y in corners]


def pixels_of(image: Image.Image) -> Tensor:
    """The image as a tensor (1, C, H, W) in [0, 1]."""
    array = np.atleast_3d(np.asarray(image))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def levels_of(images: Tensor) -> np.ndarray[Any, Any]:
    """Convert (1, C, H, W) in [0, 1] to (H, W, C) from 0 to 255."""
    return (images[0].permute(1, 2, 0) * 255).numpy()


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    return CORRUPTIONS[name](images, severity, noise_generator(name, severity, seed))


# --- each corruption against another library or a closed form


@pytest.mark.parametrize("quality", CORRUPTIONS["jpeg"].strengths)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(32, 32), (21, 30)])
def test_jpeg_equals_a_round_trip_through_pillow(
    photos: list[Image.Image], quality: int, mode: str, size: tuple[int, int]
) -> None:
    images, decoded_images = [], []
    for photo in photos:
        image, file = photo.resize(size).convert(mode), io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        images.append(pixels_of(image))
        decoded_images.append(pixels_of(Image.open(file)))
    batch = torch.cat(images)
    torch.testing.assert_close(jpeg(batch, quality), torch.cat(decoded_images))
    assert (jpeg(batch, quality) - batch).abs().mean() > 1 / 255


def test_jpeg_rounds_pixels_to_the_nearest_level() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8)) / 255
    assert torch.equal(jpeg(images + 0.3 / 255 * (images < 1), 50), jpeg(images, 50))


def test_jpeg_encodes_channels_separately_unless_there_are_three() -> None:
    images = torch.rand(2, 2, 9, 10)
    channels = torch.cat([jpeg(images[:, :1], 50), jpeg(images[:, 1:], 50)], 1)
    assert torch.equal(jpeg(images, 50), channels)


def test_jpeg_keeps_a_flat_image() -> None:
    """One coefficient per block, with a step of at most 20 of 8 x 255: at most 10 / 8 levels, plus two roundings."""
    flat = torch.rand(5, 1, 1, 1).expand(-1, 1, 12, 20)
    assert (jpeg(flat, 40) - flat).abs().max() <= (10 / 8 + 1) / 255 + 1e-6


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (20, 12)])
@pytest.mark.parametrize("scale", CORRUPTIONS["pixelate"].strengths)
def test_pixelate_equals_the_box_filter_of_pillow(
    photos: list[Image.Image], scale: float, size: tuple[int, int]
) -> None:
    image = photos[0].resize(size)
    small_image = image.resize((int(size[0] * scale), int(size[1] * scale)), Image.Resampling.BOX)
    upsampled = np.asarray(small_image.resize(size, Image.Resampling.BOX)).astype(float)
    assert np.abs(levels_of(pixelate(pixels_of(image), scale)) - upsampled).max() < 1.01  # Pillow rounds twice


def test_pixelate_is_idempotent() -> None:
    images = torch.rand(2, 3, 11, 17)
    first_pass = pixelate(images, 0.65)
    torch.testing.assert_close(pixelate(first_pass, 0.65), first_pass)
    assert torch.allclose(pixelate(images, 0.01), images.mean((2, 3), keepdim=True))  # a single cell


@pytest.mark.parametrize("sigma", CORRUPTIONS["gaussian_blur"].strengths)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 8, 8), (1, 2, 3, 19)])
def test_blur_equals_scipy(shape: tuple[int, ...], sigma: float) -> None:
    images = torch.rand(shape, dtype=torch.float64)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    torch.testing.assert_close(gaussian_blur(images, sigma), torch.from_numpy(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", CORRUPTIONS["brightness"].strengths)
def test_brightness_raises_the_value_of_hsv(shift: float) -> None:
    images = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    images[0, :, 0, 0] = 0.0
    images[0, :, 0, 1] = torch.tensor([0.5, 0.5, 0.5])
    corrupted = brightness(images, shift)
    for row in range(4):
        for column in range(4):
            hue, saturation, value = colorsys.rgb_to_hsv(*images[0, :, row, column].tolist())
            expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + shift))
            assert corrupted[0, :, row, column].tolist() == pytest.approx(expected)


def test_brightness_of_grey_is_an_addition() -> None:
    images = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(brightness(images, 0.3), (images + 0.3).clamp(max=1))


def test_contrast_keeps_the_mean_and_scales_the_deviation() -> None:
    images = torch.rand(3, 3, 8, 8)
    corrupted = contrast(images, 0.4)
    torch.testing.assert_close(corrupted.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(corrupted.std((2, 3)), 0.4 * images.std((2, 3)))


def test_noise_has_the_expected_mean_and_deviation() -> None:
    grey = torch.full((200, 3, 16, 16), 0.5)
    noise = gaussian_noise(grey, 0.08, torch.Generator().manual_seed(0)) - grey
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.001)
    shot_residual = shot_noise(grey, 100, torch.Generator().manual_seed(0)) - grey
    assert float(shot_residual.std()) == pytest.approx((0.5 / 100) ** 0.5, rel=0.02)
    assert float(shot_residual.mean()) == pytest.approx(0, abs=0.001)
    impulse_images = impulse_noise(grey, 0.07, torch.Generator().manual_seed(0))
    assert float((impulse_images == 0).double().mean()) == pytest.approx(0.035, abs=0.002)
    assert float((impulse_images == 1).double().mean()) == pytest.approx(0.035, abs=0.002)
    assert set(impulse_images.unique().tolist()) == {0.0, 0.5, 1.0}


def test_shot_noise_does_not_change_black() -> None:
    assert not shot_noise(torch.zeros(2, 1, 4, 4), 50, torch.Generator()).any()


# --- all corruptions


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 1, 8, 8), (2, 3, 13, 9), (1, 2, 5, 40), (2, 1, 1, 1)])
def test_corrupted_pixels_stay_in_range(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for images in (torch.rand(shape, generator=generator), torch.zeros(shape), torch.ones(shape)):
        before = images.clone()
        for severity in SEVERITIES:
            corrupted = corrupt(images, name, severity)
            assert corrupted.shape == shape
            assert corrupted.dtype == images.dtype
            assert corrupted.isfinite().all()
            assert corrupted.min() >= 0
            assert corrupted.max() <= 1
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_distance_from_the_image_grows_with_severity(photos: list[Image.Image], name: str) -> None:
    images = torch.cat([pixels_of(photo) for photo in photos])
    distances = [float((corrupt(images, name, severity) - images).square().mean()) for severity in SEVERITIES]
    assert distances == sorted(set(distances))
    assert distances[0] > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_results_do_not_depend_on_the_batch_size(name: str) -> None:
    images = torch.rand(10, 3, 7, 5)
    corrupted = corrupt(images, name, 3)
    generator = noise_generator(name, 3)
    in_batches = torch.cat([CORRUPTIONS[name](batch, 3, generator) for batch in images.split([1, 6, 3])])
    torch.testing.assert_close(in_batches, corrupted, atol=1e-6, rtol=0)
    assert torch.equal(corrupt(images, name, 3), corrupted)


@pytest.mark.parametrize("name", [name for name, each in CORRUPTIONS.items() if each.random])
def test_random_draws_depend_on_seed_and_severity(name: str) -> None:
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(corrupt(images, name, 5, seed=1), corrupt(images, name, 5))
    first = [torch.rand(3, generator=noise_generator(name, severity)) for severity in SEVERITIES]
    assert len({tuple(draw.tolist()) for draw in first}) == 5


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_each_corruption_has_five_severities(severity: int) -> None:
    assert all(len(corruption.strengths) == 5 for corruption in CORRUPTIONS.values())
    with pytest.raises(ValueError, match=f"1 to 5, got {severity}"):
        CORRUPTIONS["jpeg"](torch.rand(1, 1, 8, 8), severity, torch.Generator())


# --- the accuracy of a network


def test_accuracies_equal_those_on_the_corrupted_split(tiny_data: Data, trained_model: Callable[..., Tapped]) -> None:
    model = trained_model()
    result = corruption_accuracies(model, tiny_data.test, batch_size=5)
    assert list(result) == list(CORRUPTIONS)
    images = tiny_data.test.inputs
    assert isinstance(images, Tensor)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    for name, shares in result.items():
        with torch.no_grad():
            answers = [model(corrupt(pixels, name, severity)) for severity in SEVERITIES]
        assert shares == pytest.approx([float(accuracy(logits, tiny_data.test.labels)) for logits in answers])
    assert result == corruption_accuracies(model, tiny_data.test, batch_size=16)
    assert len({share for shares in result.values() for share in shares}) > 3


def test_network_and_random_state_are_unchanged(
    tiny_data: Data, tiny_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    model = tiny_model(dropout=0.5).train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    before, modes = state_of(model), [module.training for module in model.modules()]
    randomness = torch.get_rng_state()
    corruption_accuracies(model, tiny_data.test)
    assert changed(before, state_of(model)) == set()
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(randomness, torch.get_rng_state())


def test_soft_and_absent_labels(
    tiny_data: Data, soft: Data, trained_model: Callable[..., Tapped], refused: Refused
) -> None:
    model = trained_model()
    assert corruption_accuracies(model, soft.train) == corruption_accuracies(model, tiny_data.train)
    labels = tiny_data.test.labels.clone()
    labels[8:] = -1
    half = corruption_accuracies(model, replace(tiny_data.test, labels=labels))
    assert half["jpeg"] == corruption_accuracies(model, tiny_data.test.subset(torch.arange(8)))["jpeg"]
    with refused("none of the 16 samples has a label"):
        corruption_accuracies(model, replace(tiny_data.test, labels=torch.full((16,), -1)))


class Unfit(nn.Module):
    """A network that divides by the distance of an image from white, which is 0 for many brightened images."""

    def forward(self, inputs: Tensor) -> Tensor:
        distance = (1 - inputs).amin((1, 2, 3))
        return torch.stack([distance / distance, distance], 1)


def test_non_finite_logits_are_refused(tiny_data: Data) -> None:
    with pytest.raises(NonFiniteError, match=r"under .* of severity [1-5]"):
        corruption_accuracies(Unfit(), tiny_data.test)
