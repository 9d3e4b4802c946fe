"""Colour changes and RandAugment against Pillow, colorsys and float64 formulas."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tutelage.data import ColourJitter, RandAugment
from tutelage.data.views import colour
from tutelage.data.views.draws import Draws
from tutelage.data.views.rand_augment import BLEND, DEGREES, OPERATIONS, SHEAR, SHIFT, apply_operations, warped

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 17, 23, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(PIXELS)
FACTORS = (0.0, 0.4, 1.0, 1.7)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("operation", "enhance"),
    [
        (colour.brightened, ImageEnhance.Brightness),
        (colour.contrasted, ImageEnhance.Contrast),
        (colour.saturated, ImageEnhance.Color),
    ],
)
def test_blends_are_those_of_pillow(operation, enhance, factor):
    actual = operation(IMAGES.float(), torch.full((3, 1, 1, 1), factor)).round().numpy()
    for number in range(3):
        expected = np.asarray(enhance(Image.fromarray(PIXELS[number])).enhance(factor)).astype(float)
        assert abs(actual[number] - expected).max() <= 1.001  # Pillow rounds the grey image, and cuts decimals off


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.4])
def test_hue_is_that_of_colorsys(turn):
    pixels = np.concatenate([PIXELS[0], np.full((17, 1, 3), 77, np.uint8)], 1)  # grey pixels have no hue
    actual = colour.hue_turned(torch.from_numpy(pixels)[None].float(), torch.full((1, 1, 1, 1), turn))[0]
    for pixel, result in zip(pixels.reshape(-1, 3), actual.reshape(-1, 3).tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)) * 255
        np.testing.assert_allclose(result, expected, atol=2e-3)


def test_jitter_applies_factors_within_its_range_in_order():
    jitter = ColourJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    view = torch.arange(3)
    draws = Draws.of(view, view, 1)
    factors = [draws.uniform(1 - s, 1 + s) for s in (0.4, 0.3, 0.2)] + [draws.uniform(-0.1, 0.1)]
    expected = IMAGES.double()
    operations = (colour.brightened, colour.contrasted, colour.saturated, colour.hue_turned)
    for operation, factor in zip(operations, factors, strict=True):
        expected = operation(expected, factor.double()[:, None, None, None])
    actual = jitter(IMAGES, Draws.of(view, view, 1))
    assert (actual.double() - expected).abs().max() <= 0.501
    grey = IMAGES[..., :1]
    assert jitter(grey, Draws.of(view, view, 1)).shape == grey.shape
    assert torch.equal(ColourJitter(0, 0, 0, 0)(IMAGES, Draws.of(view, view, 1)), IMAGES)


def operated(name: str, sign: float, strength: float, images: torch.Tensor = IMAGES) -> torch.Tensor:
    number = torch.full((len(images),), OPERATIONS.index(name))
    return apply_operations(images, [(number, torch.full((len(images),), sign))], strength)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_colour_operations_are_those_of_pillow(strength):
    for number in range(3):
        image = Image.fromarray(PIXELS[number] // 2 + 40)
        images = torch.from_numpy(np.array(image))[None]
        bits = 8 - round(4 * strength)
        expected = {
            "autocontrast": ImageOps.autocontrast(image),
            "posterize": ImageOps.posterize(image, bits),
            "solarize": ImageOps.solarize(image, math.ceil(255 * (1 - strength))),
            "brightness": ImageEnhance.Brightness(image).enhance(1 - BLEND * strength),
            "contrast": ImageEnhance.Contrast(image).enhance(1 - BLEND * strength),
            "saturation": ImageEnhance.Color(image).enhance(1 - BLEND * strength),
            "identity": image,
        }
        for name, reference in expected.items():
            actual = operated(name, -1.0, strength, images)[0].numpy().astype(int)
            assert abs(actual - np.asarray(reference).astype(int)).max() <= 1, name


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometric_operations_are_pillows_affine_transform(name, sign):
    amount = 0.5 * sign
    height, width = 24, 32
    noise = np.random.default_rng(2).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    angle = math.radians(DEGREES) * amount if name == "rotate" else 0.0
    a, b, d, e = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    b += SHEAR * amount * (name == "shear_x")
    d += SHEAR * amount * (name == "shear_y")
    x, y = width / 2, height / 2  # Pillow's coordinates have their origin in the corner
    c = x - a * x - b * y + SHIFT * width * amount * (name == "translate_x")
    f = y - d * x - e * y + SHIFT * height * amount * (name == "translate_y")
    expected = np.asarray(
        image.transform((width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
    )
    actual = operated(name, sign, 0.5, torch.from_numpy(np.array(image))[None])[0].numpy()
    inside = np.ones((height, width), bool)  # at the border Pillow replicates half a pixel, and this does not
    for points in (expected, actual):
        empty = np.pad((points == 0).all(2), 1, constant_values=True)
        for down in range(3):
            for across in range(3):
                inside &= ~empty[down : down + height, across : across + width]
    assert inside.mean() > 0.3
    assert abs(actual.astype(int) - expected.astype(int))[inside].max() <= 1


def test_warp_by_right_angles_and_whole_pixels_is_exact():
    images = IMAGES[:, :17, :17].float()
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]).expand(3, 2, 3)
    torch.testing.assert_close(warped(images, turn), images.rot90(1, (1, 2)), atol=1e-2, rtol=0)
    shift = torch.tensor([[[1.0, 0.0, 3.0], [0.0, 1.0, -2.0]]]).expand(3, 2, 3)
    expected = torch.zeros_like(images)
    expected[:, 2:, :-3] = images[:, :-2, 3:]
    torch.testing.assert_close(warped(images, shift), expected, atol=1e-2, rtol=0)


def test_layers_compose():
    """Two shifts are one by their sum, and a change of colour follows."""
    number = torch.full((3,), OPERATIONS.index("translate_x"))
    plus = torch.ones(3)
    images = IMAGES[:, :, :20]  # 0.1 x 0.45 x 20 pixels is not whole, twice 1/9 x 0.45 x 20 is 2
    inverted = torch.full((3,), OPERATIONS.index("solarize"))
    changed = apply_operations(images, [(number, plus), (inverted, plus), (number, plus)], 1 / 9)
    assert torch.equal(changed[:, :, :18], apply_operations(images, [(inverted, plus)], 1 / 9)[:, :, 2:])


def test_rand_augment_draws_every_operation_for_single_images():
    images = IMAGES[:1].expand(600, -1, -1, -1)
    view = torch.arange(600)
    augmented = RandAugment(layers=1, magnitude=30)(images, Draws.of(view, view, 1))
    draws = Draws.of(view, view, 1)
    number, sign = draws.integers(len(OPERATIONS)), draws.sign()
    assert len(number.unique()) == len(OPERATIONS)
    for place in (0, 17, 599):
        alone = apply_operations(images[:1], [(number[place : place + 1], sign[place : place + 1])], 1.0)
        assert torch.equal(augmented[place : place + 1], alone)
    assert len(augmented.flatten(1).unique(dim=0)) >= 19  # 7 operations have two directions, 5 one


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ColourJitter(brightness=-0.1), ("brightness", "-0.1")),
        (lambda: ColourJitter(hue=0.7), ("hue", "0.7", "0.5")),
        (lambda: ColourJitter(contrast=math.nan), ("contrast", "nan")),
        (lambda: RandAugment(layers=0), ("layers", "0")),
        (lambda: RandAugment(magnitude=31), ("magnitude", "31", "30")),
    ],
)
def test_wrong_parameters_are_refused(make, words, refused):
    with refused(*words):
        make()
