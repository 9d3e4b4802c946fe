"""Cached teacher outputs equal computed ones, or are refused."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tutelage.data import CropsAndFlips, Data, folder
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches
from tutelage.models.derived_role import DerivedRole
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.sources.cache import TeacherCache
from tutelage.terms.attention import pooled_attention
from tutelage.terms.flow import flow_matrix

Net = Callable[..., Tapped]
ROLES = ("logits", "embedding")
ATTENTION = DerivedRole(pooled_attention, "stage1", size=(4, 4), p=2.0)
FLOW = DerivedRole(flow_matrix, "stage1", "stage2")
OUTPUT_SIZES = {"logits": 4, "embedding": 8, ATTENTION: 16, FLOW: 32, "stage2": 128}
"""Roles, and the size of the tiny network's output for each."""


def epochs(data: Data, count: int, seed: int = 0) -> list[Batch]:
    batches = Batches(data.train, batch_size=16, views=data.views, seed=seed)
    return [batch for epoch in range(count) for batch in batches.epoch(epoch)]


def max_difference(a: Outputs, b: Outputs, roles: Collection[str] = ROLES) -> float:
    return max(float((a[role] - b[role]).abs().max()) for role in roles)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_cached_outputs_equal_computed_ones(
    precision: Any, tolerance: float, tiny_data: Data, tiny_model: Net, tmp_path: Path
) -> None:
    teacher = tiny_model(1)
    computed, batches = Frozen(teacher), epochs(tiny_data, 6)
    for is_filled in (False, True):
        store = TeacherCache(tmp_path, tiny_data, precision)
        cached_source = Frozen(teacher, cache=store)
        for batch in batches:
            outputs, expected = cached_source(batch, OUTPUT_SIZES, {}), computed(batch, OUTPUT_SIZES, {})
            assert outputs["logits"].dtype == torch.float32
            scale = max(float(expected[role].abs().max()) for role in OUTPUT_SIZES)
            assert max_difference(outputs, expected, OUTPUT_SIZES) <= tolerance * scale
        assert store.hits + store.misses == len(batches) * 16
        assert (store.misses == 16) if is_filled else (store.misses > 16)  # shapes are read from the first batch
    sizes = {file.name.split("-", 2)[2]: file.stat().st_size for file in tmp_path.iterdir()}
    bytes_per_number = {"float32": 4, "float16": 2, "bfloat16": 2}[precision]
    names = ("logits", "embedding", "pooled_attention-stage1-size-4-4-p-2.0", "flow_matrix-stage1-stage2", "stage2")
    assert sizes == {
        f"{name}-{precision}.outputs": 4096 + 48 * (8 + 9 * (4 + size * bytes_per_number))
        for name, size in zip(names, OUTPUT_SIZES.values(), strict=True)
    }


def test_computed_outputs_are_rounded_like_cached_ones(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data, "float16"))
    first = cached_source(batch, ROLES, {})
    assert max_difference(first, cached_source(batch, ROLES, {})) == 0


def test_every_teacher_has_its_own_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teachers = (tiny_model(1), tiny_model(2))
    cached_source = Frozen(*teachers, cache=TeacherCache(tmp_path, tiny_data))
    for batch in epochs(tiny_data, 2):
        assert torch.equal(
            cached_source(batch, ("logits",), {})["logits"], Frozen(*teachers)(batch, ("logits",), {})["logits"]
        )
    assert len(list(tmp_path.iterdir())) == 2


def test_subsets_of_a_data_set_share_a_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    for rows in (torch.arange(0, 32), torch.arange(16, 48)):
        subset = replace(tiny_data, train=tiny_data.train.subset(rows), validation=None)
        noisy_data = replace(subset, train=replace(subset.train, labels=(subset.train.labels + 1) % 4))
        cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, noisy_data))
        for batch in epochs(noisy_data, 2):
            expected = Frozen(teacher)(batch, ROLES, {})
            assert max_difference(cached_source(batch, ROLES, {}), expected) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_inputs_without_an_augmentation_key_are_not_cached(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data))
    cached_source(batch, ROLES, {})
    flipped = replace(batch, inputs=batch.inputs.flip(2), key=None)
    assert max_difference(cached_source(flipped, ROLES, {}), Frozen(teacher)(flipped, ROLES, {})) == 0
    assert cached_source.cache is not None
    assert (cached_source.cache.hits, cached_source.cache.misses) == (0, 16)


def test_every_precision_has_its_own_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    cached_source, computed = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data)), Frozen(teacher)
    for _ in range(2):
        assert max_difference(cached_source(batch, ROLES, {}), computed(batch, ROLES, {})) == 0  # as in a dry run
        with torch.autocast("cpu", torch.bfloat16):
            assert max_difference(cached_source(batch, ROLES, {}), computed(batch, ROLES, {})) == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert cached_source.cache is not None
    assert cached_source.cache.hits == 32


@pytest.mark.parametrize("roles", [("logits", "stage1"), (ATTENTION, "stage1"), ("stage2",)], ids=str)
def test_a_feature_map_with_too_large_a_file_is_not_cached(
    roles: tuple[str, ...], tiny_data: Data, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.sources.cache.LARGEST_MAP_FILE", 48 * 9 * 128 * 4 - 1)  # one byte less than stage2
    teacher = tiny_model(1)
    cached_source = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data))
    for batch in epochs(tiny_data, 2):
        outputs, expected = cached_source(batch, roles, {}), Frozen(teacher)(batch, roles, {})
        assert all(torch.equal(outputs[role], expected[role]) for role in roles)
    assert not list(tmp_path.iterdir())


def fill_cache(data: Data, teacher: Tapped, folder: Path, role: str = "logits") -> Path:
    """Cache the outputs of one epoch; return the file."""
    cached_source = Frozen(teacher, cache=TeacherCache(folder, data))
    for batch in epochs(data, 1):
        cached_source(batch, (role,), {})
    (file,) = folder.iterdir()
    return file


def count_passes(data: Data, teacher: Tapped, folder: Path, role: str = "logits") -> tuple[int, int]:
    """Numbers of cache hits and misses in one epoch, all of whose outputs are checked."""
    store = TeacherCache(folder, data)
    for batch in epochs(data, 1):
        outputs = Frozen(teacher, cache=store)(batch, (role,), {})[role]
        assert torch.equal(outputs, Frozen(teacher)(batch, (role,), {})[role])
    return store.hits, store.misses


@pytest.mark.parametrize("role", ["logits", ATTENTION, FLOW, "stage2"])
def test_damaged_byte_of_an_entry_is_detected_and_repaired(
    role: str, tiny_data: Data, tiny_model: Net, tmp_path: Path
) -> None:
    teacher = tiny_model(1)
    file = fill_cache(tiny_data, teacher, tmp_path, role)
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    row = 8 + 9 * (4 + 4 * OUTPUT_SIZES[role])
    for _ in range(40 if role == "logits" else 10):
        damaged_content = bytearray(content)
        sample, byte = int(generator.integers(48)), int(generator.integers(8, row))
        damaged_content[4096 + sample * row + byte] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged_content)
        hits, misses = count_passes(tiny_data, teacher, tmp_path, role)
        # The first batch is always computed, and a single missing sample is computed together with a second one.
        assert (hits, misses) in ((32, 16), (30, 18))
        assert count_passes(tiny_data, teacher, tmp_path, role) == (32, 16)  # the entry has been repaired


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda content: b"", ("is no file of cached teacher outputs", "remove it")),
    "another kind of file": (lambda content: b"PK\x03\x04" + content[4:], ("is no file of cached teacher outputs",)),
    "a truncated header": (lambda content: content[:40], ("is no file of cached teacher outputs",)),
    "another teacher": (
        lambda content: re.sub(rb'"teacher": "....', b'"teacher": "zzzz', content, count=1),
        ("another teacher",),
    ),
    "another transform": (lambda content: content.replace(b'"pad": 1', b'"pad": 2', 1), ("another views",)),
    "another shape": (lambda content: content.replace(b'"shape": [4]', b'"shape": [5]', 1), ("another shape",)),
}


@pytest.mark.parametrize(("damage", "fragments"), DAMAGE.values(), ids=list(DAMAGE))
def test_invalid_or_mismatched_file_is_refused(
    damage: Any, fragments: tuple[str, ...], tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    file = fill_cache(tiny_data, teacher, tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with refused(file, *fragments):
        count_passes(tiny_data, teacher, tmp_path)


def test_truncated_file_is_filled_again(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    file = fill_cache(tiny_data, teacher, tmp_path)
    size = file.stat().st_size
    os.truncate(file, 4096 + 500)
    hits, misses = count_passes(tiny_data, teacher, tmp_path)
    assert misses > 40
    assert hits + misses == 48
    assert file.stat().st_size == size


def test_outputs_of_other_images_weights_or_views_are_not_reused(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    fill_cache(tiny_data, teacher, tmp_path)
    images = tiny_data.train.inputs.clone()  # type: ignore[union-attr]
    images[7, 3, 3] += 1
    other = replace(tiny_data, train=replace(tiny_data.train, inputs=images))
    with refused("outputs for other images", "1 of 48", "index 7", "another folder"):
        count_passes(other, teacher, tmp_path)
    with refused("outputs of another views", "another folder"):
        count_passes(replace(tiny_data, views=CropsAndFlips(pad=1, flip=True)), teacher, tmp_path)
    with torch.no_grad():
        teacher.module.fc.bias += 1  # type: ignore[operator, union-attr]
    assert count_passes(tiny_data, teacher, tmp_path)[1] == 48  # other weights have another file
    normalised = Tapped(teacher.module, [0.1], [0.9])
    with refused("another normalisation"):
        count_passes(tiny_data, normalised, tmp_path)


def test_two_concurrent_writers(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    stores = [TeacherCache(tmp_path, tiny_data) for _ in range(2)]
    for batches in zip(epochs(tiny_data, 4, seed=1), epochs(tiny_data, 4, seed=2), strict=True):
        for store, batch in zip(stores, batches, strict=True):
            outputs = Frozen(teacher, cache=store)(batch, ROLES, {})
            assert max_difference(outputs, Frozen(teacher)(batch, ROLES, {})) == 0
    assert all(store.hits > 16 for store in stores)


def test_full_disk_is_reported_in_one_line(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with refused("cannot cache the teacher's outputs", "No space left", "MiB", "--views"):
        fill_cache(tiny_data, tiny_model(1), tmp_path)


# --- images in files


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """An image folder: four classes of four training images and a test image, grayscale 8x8, with an old mtime."""
    generator = np.random.default_rng(0)
    for name in "abcd":
        for file in [*(f"train/{name}/{number}.png" for number in range(4)), f"test/{name}/0.png"]:
            path = tmp_path / "image_folder" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
            os.utime(path, (1e9, 1e9))
    return tmp_path / "image_folder"


def load(images: Path, image_size: int | None = None) -> Data:
    return folder.load(images, image_size, in_memory_bytes=0)


def test_image_files_are_identified_without_decoding(
    image_folder: Path, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, teacher = load(image_folder), tiny_model(1)
    fill_cache(data, teacher, tmp_path / "cache")
    subset = replace(data, train=data.train.subset(torch.tensor([9, 2, 14])))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
        TeacherCache(tmp_path / "cache", data)
        TeacherCache(tmp_path / "cache", subset)
    count_passes(data, teacher, tmp_path / "cache")
    count_passes(load(image_folder.rename(tmp_path / "moved")), teacher, tmp_path / "cache")


def touch(file: Path) -> None:
    os.utime(file, (1e9, 1e9 + 1))


def replace_file(file: Path) -> None:
    """Replace the file by an image of another size in bytes with the same mtime."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    os.utime(file, (1e9, 1e9))


def rename(file: Path) -> None:
    file.rename(file.with_name("1b.png"))


def remove(file: Path) -> None:
    """Remove the file, which shifts the index of all later images."""
    file.unlink()


@pytest.mark.parametrize(
    ("change", "differ"), [(touch, "1 of 16"), (replace_file, "1 of 16"), (rename, "1 of 16"), (remove, "10 of 15")]
)
def test_changed_files_count_as_other_images(
    change: Callable[[Path], None], differ: str, image_folder: Path, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    fill_cache(load(image_folder), teacher, tmp_path / "cache")
    change(image_folder / "train" / "b" / "1.png")
    with refused("outputs for other images", differ, "index 5", "another folder"):
        count_passes(load(image_folder), teacher, tmp_path / "cache")


def test_another_image_size_counts_as_other_images(
    image_folder: Path, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    fill_cache(load(image_folder), teacher, tmp_path / "cache")
    with refused("outputs for other images", "16 of 16"):
        count_passes(
            load(image_folder, image_size=8), teacher, tmp_path / "cache"
        )  # would be cropped if it were not square


def test_missing_image_file_is_reported(image_folder: Path, tmp_path: Path, refused: Any) -> None:
    data, file = load(image_folder), image_folder / "train" / "b" / "1.png"
    file.unlink()
    with refused(file, "cannot be read", "No such file"):
        TeacherCache(tmp_path / "cache", data)


def test_images_without_fingerprints_are_refused(tiny_data: Data, tmp_path: Path, refused: Any) -> None:
    class Rows:
        shape = (48, 8, 8, 1)

        def __getitem__(self, index: Tensor) -> Tensor:
            return tiny_data.train.inputs[index]

        def fingerprint(self, index: int) -> None:
            """Rows of a table have no fingerprint."""

    train = replace(tiny_data.train, inputs=Rows())
    for split in (train, train.subset(torch.arange(5))):
        with refused("tiny", "no files of their own", "without teacher_cache="):
            TeacherCache(tmp_path, replace(tiny_data, train=split))


def test_different_images_with_the_same_index_are_refused(tiny_data: Data, tmp_path: Path, refused: Any) -> None:
    train = replace(tiny_data.train, index=torch.arange(len(tiny_data.train)) % 40)
    with refused("8 training samples of tiny", "first is index 0", "without teacher_cache="):
        TeacherCache(tmp_path, replace(tiny_data, train=train))
    repeated_split = tiny_data.train.subset(torch.tensor([0, 1, 1, 2]))  # the same image twice is not ambiguous
    TeacherCache(tmp_path, replace(tiny_data, train=repeated_split))


def test_overwritten_file_changes_the_fingerprint(tiny_data: Data, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(6):
            file = tmp_path / "image_folder" / split / f"{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tiny_data.train.inputs[number, ..., 0].numpy()).save(file)
    data = load(tmp_path / "image_folder")
    before, codes = data.fingerprint, TeacherCache(tmp_path / "cache", data)._codes
    Image.fromarray(tiny_data.train.inputs[9, ..., 0].numpy()).save(tmp_path / "image_folder" / "train" / "0" / "2.png")
    changed_data = load(tmp_path / "image_folder")
    assert changed_data.fingerprint != before
    assert (TeacherCache(tmp_path / "cache", changed_data)._codes != codes).tolist() == [False, True] + [False] * 4
