"""Damaged and hostile ``.npz`` archives are refused."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.data.archives import ARRAYS
from tutelage.data import open_data
from tutelage.errors import TutelageError


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", pickle.dumps({"train_images": 1}), npy(), b"PK\x03\x04 and then nothing of the kind"],
    ids=["empty", "text", "pickle", "npy", "broken zip"],
)
def test_file_that_is_not_an_archive_is_refused(tmp_path, refused, content):
    (tmp_path / "d.npz").write_bytes(content)
    with refused(tmp_path / "d.npz", "np.savez", "train_images"):
        open_data(f"npz:{tmp_path / 'd.npz'}")


def test_pickles_are_never_executed(tmp_path, refused):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "d.npz", **{**ARRAYS, "train_labels": np.array([Trap()], dtype=object)})
    with refused("train_labels", "Python objects"):
        open_data(f"npz:{tmp_path / 'd.npz'}")
    assert not (tmp_path / "sprung").exists()


def test_damaged_array_in_the_archive_is_named(tmp_path, save_archive, refused):
    spec = save_archive()
    file = tmp_path / "d.npz"
    content = bytearray(file.read_bytes())
    at = content.find(ARRAYS["train_images"].tobytes()[:64])
    content[at] ^= 0xFF
    file.write_bytes(content)
    with refused("train_images", file, "CRC", "save it again"):
        open_data(spec)


def test_member_that_is_not_an_array_is_named(tmp_path, save_archive, refused):
    spec = save_archive(train_labels=None)
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("train_labels", b"0 1 2 3")
    with refused("train_labels", "not an array", "np.savez"):
        open_data(spec)


def member(shape: str, descr: str = "|u1", content: bytes = b"\0" * 64, version: tuple[int, int] = (1, 0)) -> bytes:
    """An ``.npy`` file with an arbitrary header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    size = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + header + content


@pytest.mark.parametrize("key", ["train_images", "train_labels", "classes", "train_index"])
@pytest.mark.parametrize(
    "content",
    [
        member("(10**20,)"),
        member("(100000000000000000000,)"),
        member("(1000000000, 1000, 3)"),
        member("(8000000000,)", "<f8"),
        member("(-1,)"),
        member("(-8, -8)"),
        member("(8, 4611686018427387904, 4)"),
        member("(65,)"),
        member("(63,)"),
        member("(" * 3000 + ")" * 3000),
        member("(64,)", "<U0"),
        member("(10000000000,)", "<U0", b""),
        member("(8,)", "|O"),
        member("(8,)", "nonsense"),
        member("'no shape'"),
        member("(64.0,)"),
        member("(64,)", version=(3, 0)),
        member("(64,)", version=(9, 9)),
        member("(64,)")[:40],
        b"\x93NUMPY",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"",
    ],
)
def test_false_headers_are_refused_before_memory_is_allocated(tmp_path, save_archive, refused, key, content):
    spec = save_archive(**{key: None})
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr(f"{key}.npy", content)
    tracemalloc.start()
    try:
        with refused(key, "save it again"):
            open_data(spec)
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_archives_are_refused(tmp_path, refused, share, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", **ARRAYS)
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[: int(share * len(content))])
    with refused(tmp_path / "d.npz", "np.savez"):
        open_data(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_damaged_byte_gives_correct_arrays_or_a_one_line_error(tmp_path, save_archive):
    spec = save_archive()
    archive_content = (tmp_path / "d.npz").read_bytes()
    for position in [*range(0, 300, 5), *range(len(archive_content) - 500, len(archive_content), 7)]:
        damaged_content = bytearray(archive_content)
        damaged_content[position] ^= 0xFF
        (tmp_path / "d.npz").write_bytes(damaged_content)
        with contextlib.suppress(TutelageError):
            open_data(spec)


@pytest.mark.parametrize("key", sorted(ARRAYS))
@pytest.mark.parametrize("value", [np.array(3), np.array(3.5), np.array("cat"), np.zeros(0)])
def test_zero_dimensional_and_empty_arrays_are_refused(save_archive, refused, key, value):
    with refused(key.partition("_")[0]):
        open_data(save_archive(**{key: value}))
