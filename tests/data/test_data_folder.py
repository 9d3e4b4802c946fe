"""Image data read from folders."""

from __future__ import annotations

import json
import pickle
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

from tutelage.data import Batches, CropsAndFlips, evaluation_batches, open_data
from tutelage.data.folder import ImageFiles, load
from tutelage.errors import TutelageWarning


def image(seed: int, shape: tuple[int, ...] = (16, 16, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(file: Path, pixels: np.ndarray, **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two classes with four training and two test images each, 16x16 RGB."""
    for part, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(tmp_path / part / name / f"{i}.png", image(100 * len(part) + 10 * number + i))
    return tmp_path


def test_images_are_read_from_one_folder_per_class(folder):
    data = open_data(f"folder:{folder}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.image_shape == (3, 16, 16)
    assert data.views == CropsAndFlips(pad=2, flip=True)
    for index, (name, i) in enumerate((name, i) for name in ("cat", "dog") for i in range(4)):
        with Image.open(folder / "train" / name / f"{i}.png") as image:
            np.testing.assert_array_equal(data.train.inputs[index], np.asarray(image))
    assert data.record == ({"source": "folder", "test_from": "test", "resized_to": None, "in_memory": True},)


def test_supported_formats_and_skipped_files(folder):
    smooth = np.add.outer(np.arange(16), np.arange(16))[..., None].repeat(3, 2).astype(np.uint8) * 6
    for name, options in (
        ("a.jpg", {"quality": 95}),
        ("b.JPEG", {"quality": 95, "format": "JPEG"}),
        ("c.webp", {"lossless": True}),
        ("d.bmp", {}),
        ("e.jfif", {"quality": 95, "format": "JPEG"}),
        ("F.PNG", {}),
    ):
        write_image(folder / "train" / "ant" / name, smooth, **options)
    (folder / "train" / "ant" / ".hidden.png").write_bytes(b"no image")
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    (folder / "train" / "ant" / "deeper.png").mkdir()
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "labels.csv").touch()
    with pytest.warns(TutelageWarning, match=r"passed over: 1 \.csv, 1 \.txt, 1 folder, 1 hidden image"):
        data = open_data(f"folder:{folder}")
    assert data.classes == ("ant", "cat", "dog")
    assert data.record[0]["passed_over"] == {".csv": 1, ".txt": 1, "folder": 1, "hidden image": 1}
    assert (data.train.labels == 0).sum() == 6
    for image in data.train.inputs[:6]:
        np.testing.assert_allclose(image.numpy().astype(float), smooth, atol=6)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_folder_is_read_and_replaces_a_missing_test_folder(folder, name):
    write_image(folder / name / "dog" / "0.png", image(1))
    data = open_data(f"folder:{folder}")
    assert data.validation.labels.tolist() == [1]
    np.testing.assert_array_equal(data.validation.inputs[0], image(1))
    (folder / "test").rename(folder / "kept")
    with pytest.warns(TutelageWarning, match="no test split, so its validation split is the test split"):
        data = open_data(f"folder:{folder}")
    assert data.validation is None
    assert data.test.labels.tolist() == [1]
    assert data.record[0]["test_from"] == "validation"


DEEP = np.random.default_rng(4).integers(0, 2**16, (16, 16), dtype=np.uint16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(image(3, (16, 16))), image(3, (16, 16))),
        (Image.fromarray(image(3, (16, 16)) > 99), (image(3, (16, 16)) > 99) * 255),
        (Image.fromarray(DEEP), np.rint(DEEP / 257)),
        (Image.fromarray(image(3, (16, 16))).convert("LA"), image(3, (16, 16))),
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
    grey = image(3, (16, 16))
    for name in ("train/a", "train/b", "test/a", "test/b"):
        write_image(tmp_path / name / "0.png", image(3) if name == coloured else grey)
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
    write_image(folder / "test" / "dog" / "1.png", image(1, (20, 30, 3)))
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


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_batches_equal_those_from_memory(folder, workers):
    memory, files = load(folder), load(folder, in_memory_bytes=1000)
    assert memory.train.in_memory
    assert not files.train.in_memory
    assert files.record[0]["in_memory"] is False
    assert isinstance(files.train.inputs, ImageFiles)
    options = {"batch_size": 3, "views": memory.views, "seed": 5}
    pairs = [
        (
            Batches(memory.train, **options).epoch(1),
            Batches(files.train, workers=workers, **options).epoch(1),
        ),
        (evaluation_batches(memory.test, batch_size=3), evaluation_batches(files.test, batch_size=3, workers=workers)),
    ]
    generator = torch.get_rng_state()
    for expected, streamed in pairs:
        steps = 0
        for a, b in zip(expected, streamed, strict=True):
            steps += 1
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
            assert torch.equal(a.index, b.index)
        assert steps == 2
    assert torch.equal(torch.get_rng_state(), generator)  # reading must not change the global random state


def test_streamed_files_support_hold_out_pickling_and_statistics(folder):
    memory, files = load(folder), load(folder, in_memory_bytes=0)
    np.testing.assert_allclose(memory.mean_std, files.mean_std, rtol=1e-9)
    part = files.hold_out(0.5).validation
    copy = pickle.loads(pickle.dumps(part.inputs))
    assert torch.equal(copy[torch.arange(4)], memory.hold_out(0.5).validation.inputs)
    assert copy[torch.arange(0)].shape == (0, 16, 16, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_image_damaged_after_opening_is_named_with_and_without_workers(folder, refused, workers):
    data = load(folder, in_memory_bytes=0)
    file = folder / "train" / "dog" / "2.png"
    file.write_bytes(file.read_bytes()[:200])
    with refused(file, "cannot be read", "replace or remove"):
        list(Batches(data.train, batch_size=4, workers=workers).epoch(0))
    write_image(file, image(1, (9, 16, 3)))
    with refused(file, "16x9", "16x16 before"):
        list(Batches(data.train, batch_size=4, workers=workers).epoch(0))


def huge_png(width: int, height: int) -> bytes:
    """The start of a PNG whose header declares this many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return start + struct.pack(">I", 9) + b"IDAT"


def whole_jpeg() -> bytes:
    stream = BytesIO()
    Image.fromarray(image(1)).save(stream, "JPEG", quality=100)
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
    write_image(cat_folder / "more" / "0.png", image(1))
    (cat_folder / ".DS_Store").touch()
    write_image(folder / "test" / "stray.png", image(1))
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
        Image.fromarray(image(1)).save(stream, kind)
        contents.append(stream.getvalue())
    for content in contents:
        file.write_bytes(content)
        for memory in (2**30, 0):
            with refused(file, "not a PNG, JPEG, WebP or BMP file", "replace or remove"):
                load(folder, in_memory_bytes=memory)


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
    data = load(tmp_path, in_memory_bytes=memory)
    assert data.image_shape == (3, 16, 24)
    for image in data.train.inputs[torch.arange(16)]:
        np.testing.assert_allclose(image.numpy().astype(float), upright, atol=12)


def test_image_with_damaged_exif_block_is_read(folder):
    write_image(folder / "train" / "cat" / "0.png", image(5), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(open_data(f"folder:{folder}").train.inputs[0], image(5))


def flat(folder: Path, *sizes: int) -> Path:
    for label, size in enumerate(sizes):
        for number in range(size):
            write_image(folder / f"class {label}" / f"{number:03}.png", image(100 * label + number, (8, 8, 3)))
    return folder


@pytest.mark.parametrize("memory", [2**30, 0])
def test_class_folders_without_splits_are_split_by_class_deterministically(tmp_path, memory):
    flat(tmp_path, 20, 10, 1)
    with pytest.warns(TutelageWarning, match=r"no test split: 6 of its 31 samples.*--test 0\.2"):
        data = load(tmp_path, in_memory_bytes=memory)
    assert data.classes == ("class 0", "class 1", "class 2")
    assert data.test.labels.bincount(minlength=3).tolist() == [4, 2, 0]
    assert data.train.labels.bincount().tolist() == [16, 8, 1]
    assert sorted([*data.train.index.tolist(), *data.test.index.tolist()]) == list(range(31))
    number = int(data.test.index[0])
    np.testing.assert_array_equal(data.test.inputs[torch.tensor([0])][0], image(number, (8, 8, 3)))
    assert {**data.record[0], "in_memory": None} == {
        "source": "folder",
        "test_from": "train",
        "test_share": 0.2,
        "resized_to": None,
        "in_memory": None,
    }
    copy = load(tmp_path, test=0.2, in_memory_bytes=memory)  # an explicit share gives no warning
    assert torch.equal(copy.test.index, data.test.index)


def test_share_of_the_test_split_can_be_set(tmp_path, refused):
    flat(tmp_path, 10, 10)
    assert len(open_data(f"folder:{tmp_path}", test=0.5).test) == 10
    for share in (0, 1, -0.1, float("nan")):
        with refused("between 0 and 1", share):
            open_data(f"folder:{tmp_path}", test=share)


def test_test_share_is_refused_for_a_folder_with_a_test_split(folder, refused):
    with refused("a test split already", "0.3"):
        open_data(f"folder:{folder}", test=0.3)


def test_classes_too_small_to_split_are_refused(tmp_path, refused):
    flat(tmp_path, 1, 1)
    with refused(tmp_path, "no test split", "too small", "add a test split"):
        open_data(f"folder:{tmp_path}")


def test_nested_folders_are_not_read_as_classes(tmp_path, refused):
    flat(tmp_path / "images" / "all", 2, 2)
    with refused("no image", "2 folder", "CLASS/"):
        open_data(f"folder:{tmp_path / 'images'}")


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize(
    "content", [b"", b"text", whole_jpeg()[:-100], huge_png(60_000, 60_000)], ids=["empty", "text", "cut", "bomb"]
)
def test_unreadable_images_are_skipped_on_request(folder, refused, content, memory):
    file = folder / "train" / "cat" / "1.jpg"
    file.write_bytes(content)
    with refused(file, "--skip-bad"):
        data = load(folder, in_memory_bytes=memory)
        list(Batches(data.train, batch_size=9, workers=0).epoch(0))
    with pytest.warns(TutelageWarning, match=r"1 of 13 images cannot be read and are left out, first .*1\.jpg"):
        data = load(folder, in_memory_bytes=memory, skip_bad=True)
    assert data.record[0]["skipped"] == {"train": 1}
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    pixels = data.train.inputs[torch.arange(8)]
    np.testing.assert_array_equal(pixels[1], image(501))
    np.testing.assert_array_equal(pixels[7], image(513))


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


def test_novel_split_has_its_own_classes(tmp_path, refused):
    for number, path in enumerate(("train/b", "train/d", "val/c", "novel/a", "novel/e")):
        write_image(tmp_path / path / "1.png", image(number))
    data = open_data(f"folder:{tmp_path}")
    assert data.classes == ("b", "d", "a", "c", "e")
    assert [data.train.labels.tolist(), data.test.labels.tolist()] == [[0, 1], [2, 4]]
    assert data.validation.labels.tolist() == [3]
    write_image(tmp_path / "novel" / "d" / "1.png", image(0))
    with refused("novel/d is a class that", "train has too", "name the folder test"):
        open_data(f"folder:{tmp_path}")
    write_image(tmp_path / "test" / "b" / "1.png", image(0))
    with refused(f"{tmp_path / 'test'} and {tmp_path / 'novel'} are both test splits"):
        open_data(f"folder:{tmp_path}")


def test_class_may_be_named_novel(tmp_path):
    for name in ("novel", "poem"):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.png", image(number))
    assert open_data(f"folder:{tmp_path}", test=0.2).classes == ("novel", "poem")
