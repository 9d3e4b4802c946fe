"""Data sets in IDX files (MNIST format)."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tutelage.data import CropsAndFlips, open_data

RNG = np.random.default_rng(0)
IMAGES = {
    "train": RNG.integers(0, 256, (12, 9, 16), dtype=np.uint8),
    "t10k": RNG.integers(0, 256, (5, 9, 16), dtype=np.uint8),
}
LABELS = {"train": np.arange(12, dtype=np.uint8) % 6, "t10k": np.arange(5, dtype=np.uint8)}


def encode(array: np.ndarray, magic: int | None = None) -> bytes:
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim if magic is None else magic, *array.shape)
    return head + array.tobytes()


def write(folder: Path, mark: str = "-", zipped: bool = False) -> None:
    for part in ("train", "t10k"):
        for stem, array in ((f"images{mark}idx3", IMAGES[part]), (f"labels{mark}idx1", LABELS[part])):
            content = encode(array)
            name = f"{part}-{stem}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(content, mtime=0) if zipped else content)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_file_name_variant_is_read(tmp_path, mark, zipped):
    write(tmp_path, mark, zipped)
    data = open_data(f"idx:{tmp_path}")
    for split, part in ((data.train, "train"), (data.test, "t10k")):
        np.testing.assert_array_equal(split.inputs.squeeze(3), IMAGES[part])
        np.testing.assert_array_equal(split.labels, LABELS[part])
    assert data.classes == tuple("012345")
    assert data.views == CropsAndFlips(pad=1, flip=False)
    assert data.image_shape == (1, 9, 16)


IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        (IMAGE_FILE, b"\0\0\x08", ("truncated", "3 bytes")),
        (IMAGE_FILE, encode(IMAGES["train"])[:-1], ("claims 1728", "only 1727")),
        (IMAGE_FILE, encode(IMAGES["train"]) + b"\0", ("claims 1728", "more")),
        (IMAGE_FILE, encode(IMAGES["train"], magic=0x801), ("0x00000801", "0x00000803")),
        (IMAGE_FILE, encode(IMAGES["train"][:, :, :0]), ("9x0",)),
        (IMAGE_FILE, struct.pack(">4I", 0x803, *[2**32 - 1] * 3), ("claims", "only 0")),
        (IMAGE_FILE, encode(IMAGES["train"][:11]), ("11 images", LABEL_FILE, "12 labels")),
        (LABEL_FILE, encode(LABELS["train"][:0]), ("0 samples",)),
        (LABEL_FILE, encode(LABELS["train"], magic=0xD01), ("0x00000d01", "0x00000801")),
        (LABEL_FILE, b"PK\3\4 something else entirely", ("0x504b0304",)),
    ],
)
def test_damaged_file_is_named(tmp_path, refused, name, content, pieces):
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with refused(tmp_path / name, *pieces):
        open_data(f"idx:{tmp_path}")


ZIPPED = gzip.compress(encode(IMAGES["t10k"]), mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        ZIPPED[: len(ZIPPED) // 2],
        ZIPPED[:200] + b"\xff" * 50 + ZIPPED[250:],
        ZIPPED[:10] + b"\x07" + ZIPPED[11:],
        ZIPPED[:-8] + b"\0" * 8,
        b"not gzip at all",
    ],
    ids=["truncated", "overwritten", "no such block", "checksum", "no gzip"],
)
def test_damaged_gzip_file_is_named(tmp_path, refused, content):
    write(tmp_path, zipped=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(content)
    with refused(file, "again"):
        open_data(f"idx:{tmp_path}")


def test_missing_file_is_named(tmp_path, refused):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with refused(tmp_path, "t10k-labels-idx1-ubyte", ".gz", "put the file there"):
        open_data(f"idx:{tmp_path}")


def test_label_above_all_training_labels_is_refused_in_the_test_split(tmp_path, refused):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encode(LABELS["t10k"] + 3))
    with refused("test split", "from 3 to 7", "6 classes"):
        open_data(f"idx:{tmp_path}")
