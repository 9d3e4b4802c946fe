"""Memory limits of compressed files: decompression bombs are refused before memory is allocated."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from tutelage.data import memory, open_data
from tutelage.data.conditions.files import read_matrix
from tutelage.data.memory import available_memory, check_fits, check_unpacked

Refused = Any
LABELS = struct.pack(">2I", 0x801, 4) + bytes(range(4))


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PLAUSIBLE", 2**20)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)


def idx(folder: Path, side: int, value: bytes = b"\0") -> str:
    """Gzipped IDX files with four constant images of ``side`` x ``side`` pixels per split."""
    images = struct.pack(">4I", 0x803, 4, side, side) + value * 4 * side**2
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(LABELS))
    return f"idx:{folder}"


def npz(file: Path, side: int, method: int = zipfile.ZIP_DEFLATED) -> str:
    arrays = {f"{part}_labels": np.arange(4) for part in ("train", "test")}
    arrays |= {f"{part}_images": np.zeros((4, side, side), np.uint8) for part in ("train", "test")}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            buffer = BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return f"npz:{file}"


def peak(read: Any) -> int:
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["idx", "npz"])
def test_decompression_bomb_is_refused_before_memory_is_allocated(kind: str, tmp_path: Path, refused: Refused) -> None:
    spec = idx(tmp_path, 1024) if kind == "idx" else npz(tmp_path / "d.npz", 1024)

    def read() -> None:
        with refused(tmp_path, "kB in the file and claims 4.194 MB", "100 times", "uncompressed"):
            open_data(spec)

    assert peak(read) < 1e6


@pytest.mark.usefixtures("small_limits")
def test_data_with_ordinary_ratios_and_small_data_with_any_ratio_are_read(tmp_path: Path) -> None:
    assert open_data(idx(tmp_path, 500)).input_shape == (1, 500, 500)  # 1 MB at a ratio of 800
    pixels = np.random.default_rng(0).integers(0, 60, 4 * 1024**2, dtype=np.uint8)
    images = struct.pack(">4I", 0x803, 4, 1024, 1024) + pixels.tobytes()
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    assert len(open_data(f"idx:{tmp_path}").train) == 4


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["idx", "npz", "npz stored", "wav", "npy"])
def test_data_larger_than_memory_is_refused_and_both_sizes_are_named(
    kind: str, tmp_path: Path, refused: Refused
) -> None:
    if kind == "wav":
        for part, name, length in (("train", "a", 400_000), ("train", "b", 10), ("test", "a", 10)):
            (tmp_path / part / name).mkdir(parents=True)
            wavfile.write(tmp_path / part / name / "x.wav", 8000, np.zeros(length, np.int16))
        with refused(f"3 clips of {tmp_path}", "2.4 MB of memory needed", "1 MB available", "longest"):
            open_data(f"wav:{tmp_path}")
    elif kind == "npy":
        np.save(tmp_path / "m.npy", np.zeros((500, 500)))
        with refused("m.npy", "2 MB of memory needed", "1 MB available"):
            read_matrix(tmp_path / "m.npy")
    else:
        method = zipfile.ZIP_STORED if kind == "npz stored" else zipfile.ZIP_DEFLATED
        spec = idx(tmp_path, 512) if kind == "idx" else npz(tmp_path / "d.npz", 512, method)
        with refused("1.049 MB of memory needed", "1 MB available", "in the file"):
            open_data(spec)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_methods_without_bounded_decoding_are_refused(
    method: int, tmp_path: Path, refused: Refused
) -> None:
    with refused(tmp_path, f"zip method {method}", "savez_compressed"):
        open_data(npz(tmp_path / "d.npz", 8, method))


def test_limits_of_the_decompression_rule(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)  # on systems without this information
    check_unpacked(2**30, 1, "small")
    check_unpacked(100 * 2**24, 2**24, "large")
    check_fits(10**15, "anything", "")
    with refused("it has 10.49 MB in the file and claims 107.4 GB in memory"):
        check_unpacked(100 * 2**30, 10 * 2**20, "it")


def test_available_memory_is_none_or_plausible() -> None:
    available = available_memory()
    assert available is None or available > 2**20
