"""Folders and images that cannot be read are refused, skipped or counted in a warning."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import random_pixels, write_image
from tutelage.data import Batches, open_data
from tutelage.data.assemble import Reading
from tutelage.data.formats.folder import load
from tutelage.errors import TutelageWarning


@pytest.mark.parametrize("workers", [0, 1])
def test_image_damaged_after_opening_is_named_with_and_without_workers(folder, refused, workers):
    data = load(folder, reading=Reading(in_memory_bytes=0))
    file = folder / "train" / "dog" / "2.png"
    file.write_bytes(file.read_bytes()[:200])
    with refused(file, "cannot be read", "replace or remove"):
        list(Batches(data.train, batch_size=4, workers=workers).epoch(0))
    write_image(file, random_pixels(1, (9, 16, 3)))
    with refused(file, "16x9", "16x16 before"):
        list(Batches(data.train, batch_size=4, workers=workers).epoch(0))


def huge_png(width: int, height: int) -> bytes:
    """The start of a PNG whose header declares this many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return start + struct.pack(">I", 9) + b"IDAT"


def whole_jpeg() -> bytes:
    stream = BytesIO()
    Image.fromarray(random_pixels(1)).save(stream, "JPEG", quality=100)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        ("x.png", b"", ("cannot be read", "replace or remove")),
        ("x.png", b"no image at all", ("cannot be read", "replace or remove")),
        ("x.jpg", whole_jpeg()[:-100], ("cannot be read", "truncated")),
        ("x.png", huge_png(10_000, 10_000), ("too large", "100000000 pixels", "scale it down")),
        ("x.png", huge_png(60_000, 60_000), ("too large", "3600000000 pixels", "scale it down")),
    ],
)
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_unusable_image_is_named(folder, refused, name, content, pieces):
    file = folder / "train" / "cat" / name
    file.write_bytes(content)
    with refused(file, *pieces):
        open_data(f"folder:{folder}")


def test_image_too_thin_to_scale_is_named(folder, refused):
    file = write_image(folder / "train" / "cat" / "0.png", np.zeros((1, 9000, 3), np.uint8))
    with refused(file, "9000x1", "too long and thin"):
        open_data(f"folder:{folder}", image_size=128)


def remove(path: Path) -> None:
    for file in path.rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "pieces"),
    [
        (lambda f: (f / "train").rename(f / "tarin"), ("no folder train", "train/CLASS/")),
        (lambda f: (f / "test").rename(f / "tset"), ("no folder test", "test/CLASS/")),
        (lambda f: (f / "test" / "eel").mkdir(), ("test/eel", "train", "remove it")),
        (lambda f: (f / "train" / "eel").mkdir(), ("train/eel", "no image", "remove it")),
        (lambda f: remove(f / "test"), ("test split", "empty")),
        (
            lambda f: [(f / n / "cat").mkdir(parents=True) for n in ("val", "valid")],
            ("val and", "valid", "keep one"),
        ),
        (
            lambda f: ((f / "train").rename(f / "old"), (f / "train").mkdir()),
            ("no class folders and no images", "train/CLASS/"),
        ),
    ],
    ids=[
        "no train",
        "no test",
        "strange class",
        "empty class",
        "empty test",
        "two validations",
        "no classes",
    ],
)
def test_invalid_layouts_are_refused(folder, refused, damage, pieces):
    damage(folder)
    with refused(folder, *pieces):
        open_data(f"folder:{folder}")


def test_files_that_are_not_images_are_counted_in_one_warning(folder):
    cat_folder = folder / "train" / "cat"
    for name in ("a.tif", "b.TIF", "c.gif", "d"):
        (cat_folder / name).write_bytes(b"")
    (cat_folder / "more").mkdir()
    write_image(cat_folder / "more" / "0.png", random_pixels(1))
    (cat_folder / ".DS_Store").touch()
    write_image(folder / "test" / "stray.png", random_pixels(1))
    with pytest.warns(TutelageWarning) as records:
        data = open_data(f"folder:{folder}")
    assert len(records) == 1
    text = str(records[0].message)
    for piece in (f"folder:{folder}", "2 .tif", "1 .gif", "1 file without a suffix", "1 folder", "1 .png", ".jfif"):
        assert piece in text
    assert len(data.train) == 8


def test_only_documented_formats_are_decoded(folder, refused, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    file = folder / "train" / "cat" / "0.png"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    contents = [eps]
    for kind in ("TIFF", "GIF", "TGA", "PPM", "ICO", "PCX"):
        stream = BytesIO()
        Image.fromarray(random_pixels(1)).save(stream, kind)
        contents.append(stream.getvalue())
    for content in contents:
        file.write_bytes(content)
        for memory in (2**30, 0):
            with refused(file, "not a PNG, JPEG, WebP or BMP file", "replace or remove"):
                load(folder, reading=Reading(in_memory_bytes=memory))


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize(
    "content", [b"", b"text", whole_jpeg()[:-100], huge_png(60_000, 60_000)], ids=["empty", "text", "cut", "bomb"]
)
def test_unreadable_images_are_skipped_on_request(folder, refused, content, memory):
    file = folder / "train" / "cat" / "1.jpg"
    file.write_bytes(content)
    with refused(file, "--skip-bad"):
        data = load(folder, reading=Reading(in_memory_bytes=memory))
        list(Batches(data.train, batch_size=9, workers=0).epoch(0))
    with pytest.warns(TutelageWarning, match=r"1 of 13 images cannot be read and are left out, first .*1\.jpg"):
        data = load(folder, reading=Reading(in_memory_bytes=memory), skip_bad=True)
    assert data.record[0]["skipped"] == {"train": 1}
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    pixels = data.train.inputs[torch.arange(8)]
    np.testing.assert_array_equal(pixels[1], random_pixels(501))
    np.testing.assert_array_equal(pixels[7], random_pixels(513))


def test_no_readable_image_is_skipped(folder):
    data = open_data(f"folder:{folder}", skip_bad=True)
    assert torch.equal(data.train.inputs, open_data(f"folder:{folder}").train.inputs)
    assert "skipped" not in data.record[0]


def test_folder_without_a_readable_image_is_refused(tmp_path, refused):
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "0.png").write_bytes(b"")
    with pytest.warns(TutelageWarning, match="2 of 2"), refused("split", "is empty"):
        open_data(f"folder:{tmp_path}", skip_bad=True)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are Unicode there")
def test_names_that_are_not_utf_8_are_refused(tmp_path: Path, refused: Callable[..., Any]) -> None:
    """Such names occur in archives from other systems; a run with such class names could not be read back."""
    for part in ("train", "test"):
        for name in ("caf\udce9", "tea"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / part / name / "a.png")
            (tmp_path / part / name / "b.\udcff").touch()
    with refused("the name 'caf\\udce9' cannot be stored", "rename it"), pytest.warns(TutelageWarning):
        open_data(f"folder:{tmp_path}")
    for part in ("train", "test"):
        (tmp_path / part / "caf\udce9").rename(tmp_path / part / "café")
    with pytest.warns(TutelageWarning, match=r"4 \.\\udcff"):
        data = open_data(f"folder:{tmp_path}")
    assert data.classes == ("café", "tea")
    json.dumps(data.summary(), ensure_ascii=False).encode()
