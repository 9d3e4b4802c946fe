"""Pixels of image files: channels, sizes and orientation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import random_pixels, write_image
from tutelage.data import CropsAndFlips, open_data
from tutelage.data.assemble import Reading
from tutelage.data.formats.folder import load

DEEP = np.random.default_rng(4).integers(0, 2**16, (16, 16), dtype=np.uint16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(random_pixels(3, (16, 16))), random_pixels(3, (16, 16))),
        (Image.fromarray(random_pixels(3, (16, 16)) > 99), (random_pixels(3, (16, 16)) > 99) * 255),
        (Image.fromarray(DEEP), np.rint(DEEP / 257)),
        (Image.fromarray(random_pixels(3, (16, 16))).convert("LA"), random_pixels(3, (16, 16))),
    ],
    ids=["8 bits", "1 bit", "16 bits", "alpha"],
)
def test_grey_images_have_one_channel(tmp_path, image, expected):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            image.save(tmp_path / part / name / "0.png")
    data = open_data(f"folder:{tmp_path}")
    assert data.image_shape == (1, 16, 16)
    assert data.views == CropsAndFlips(pad=2, flip=False)
    np.testing.assert_array_equal(data.train.inputs[0].squeeze(2), expected)


@pytest.mark.parametrize("coloured", ["train/a", "train/b", "test/b"])
def test_one_colour_image_makes_all_images_rgb(tmp_path, coloured):
    grey = random_pixels(3, (16, 16))
    for name in ("train/a", "train/b", "test/a", "test/b"):
        write_image(tmp_path / name / "0.png", random_pixels(3) if name == coloured else grey)
    test = open_data(f"folder:{tmp_path}").test
    np.testing.assert_array_equal(test.inputs[0], grey[..., None].repeat(3, 2))


def test_alpha_palette_and_cmyk_images_become_rgb_without_warnings(folder):
    flat = np.full((16, 16, 3), (200, 10, 60), np.uint8)
    rgb = Image.fromarray(flat)
    cat_folder = folder / "train" / "cat"
    rgb.convert("RGBA").save(cat_folder / "0.png")
    shades = flat.copy()
    shades[..., 0] += np.arange(16, dtype=np.uint8) // 4
    palette = Image.fromarray(shades).quantize(4)
    palette.save(cat_folder / "1.png", transparency=b"\x00\xff\x80\xff")  # Pillow warns when it converts this to RGB
    rgb.convert("CMYK").save(cat_folder / "2.jpg", quality=95)
    for image in open_data(f"folder:{folder}").train.inputs[:3]:  # sorted by name, so that 2.png comes after 2.jpg
        np.testing.assert_allclose(image.numpy().astype(float), flat, atol=4)


def test_images_of_several_sizes_require_an_image_size(folder, refused):
    write_image(folder / "test" / "dog" / "1.png", random_pixels(1, (20, 30, 3)))
    with refused("2 sizes", "16x16", folder / "test" / "dog" / "1.png", "20x30", "--image-size N"):
        open_data(f"folder:{folder}")


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (10, 7), (16, 16), (8, 8)])
def test_image_size_scales_the_shorter_side_and_crops_the_centre(folder, shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, shape[1])[None, :]
    pixels[..., 1] = np.linspace(0, 250, shape[0])[:, None]
    write_image(folder / "train" / "cat" / "0.png", pixels)
    data = open_data(f"folder:{folder}", image_size=8)
    assert data.image_shape == (3, 8, 8)
    assert data.views.pad == 1
    assert data.record[0]["resized_to"] == 8
    short = min(shape)
    centre = (np.arange(8) + 0.5) * short / 8 - 0.5  # source coordinates of the 8 pixels in the centre square
    across = (centre + (shape[1] - short) / 2) / (shape[1] - 1) * 250
    down = (centre + (shape[0] - short) / 2) / (shape[0] - 1) * 250
    actual = data.train.inputs[0].numpy().astype(float)
    step = 250 / min(shape)
    np.testing.assert_allclose(actual[:, :, 0], np.broadcast_to(across, (8, 8)), atol=step)
    np.testing.assert_allclose(actual[:, :, 1], np.broadcast_to(down[:, None], (8, 8)), atol=step)
    if shape == (8, 8):
        np.testing.assert_array_equal(actual, pixels)


def test_shrinking_is_antialiased(folder):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    write_image(folder / "train" / "cat" / "0.png", stripes)
    image = open_data(f"folder:{folder}", image_size=8).train.inputs[0]
    assert (image.float() - 127.5).abs().max() < 12  # without antialiasing all pixels would be black or white


@pytest.mark.parametrize("size", [0, -4])
def test_image_size_below_one_is_refused(folder, refused, size):
    with refused(size, "1 pixel or more"):
        open_data(f"folder:{folder}", image_size=size)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("memory", [2**30, 0])
def test_exif_orientation_is_applied(tmp_path, suffix, memory):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12, 0], upright[8:, 12:, 1], upright[8:, :12] = 255, 255, 128
    for part in ("train", "test"):
        for orientation, transform in TURNS.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            # The stored image is upright after the rotation.
            stored_pixels = next(
                p for p in (t(upright) for t in TURNS.values()) if np.array_equal(transform(p), upright)
            )
            options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
            write_image(
                tmp_path / part / "cat" / f"{orientation}.{suffix}",
                np.ascontiguousarray(stored_pixels),
                exif=exif,
                **options,
            )
            write_image(tmp_path / part / "dog" / f"{orientation}.{suffix}", upright, **options)
    data = load(tmp_path, reading=Reading(in_memory_bytes=memory))
    assert data.image_shape == (3, 16, 24)
    for image in data.train.inputs[torch.arange(16)]:
        np.testing.assert_allclose(image.numpy().astype(float), upright, atol=12)


def test_image_with_damaged_exif_block_is_read(folder):
    write_image(folder / "train" / "cat" / "0.png", random_pixels(5), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(open_data(f"folder:{folder}").train.inputs[0], random_pixels(5))
