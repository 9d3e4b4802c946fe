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
KEPT = {"logits": 4, "embedding": 8, ATTENTION: 16, FLOW: 32}
"""Roles, and the numbers that the tiny network's answer has."""


def epochs(data: Data, count: int, seed: int = 0) -> list[Batch]:
    batches = Batches(data.train, batch_size=16, views=data.views, seed=seed)
    return [batch for epoch in range(count) for batch in batches.epoch(epoch)]


def furthest(a: Outputs, b: Outputs, roles: Collection[str] = ROLES) -> float:
    return max(float((a[role] - b[role]).abs().max()) for role in roles)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_cached_outputs_equal_computed_ones(
    precision: Any, tolerance: float, tiny_data: Data, tiny_model: Net, tmp_path: Path
) -> None:
    teacher = tiny_model(1)
    live, shown = Frozen(teacher), epochs(tiny_data, 6)
    for again in (False, True):
        store = TeacherCache(tmp_path, tiny_data, precision)
        kept = Frozen(teacher, cache=store)
        for batch in shown:
            answer, expected = kept(batch, KEPT, {}), live(batch, KEPT, {})
            assert answer["logits"].dtype == torch.float32
            scale = max(float(expected[role].abs().max()) for role in KEPT)
            assert furthest(answer, expected, KEPT) <= tolerance * scale
        assert store.hits + store.misses == len(shown) * 16
        assert (store.misses == 16) if again else (store.misses > 16)  # the first batch shows the shapes
    sizes = {file.name.split("-", 2)[2]: file.stat().st_size for file in tmp_path.iterdir()}
    width = {"float32": 4, "float16": 2, "bfloat16": 2}[precision]
    names = ("logits", "embedding", "pooled_attention-stage1-size-4-4-p-2.0", "flow_matrix-stage1-stage2")
    assert sizes == {
        f"{name}-{precision}.outputs": 4096 + 48 * (8 + 9 * (4 + numbers * width))
        for name, numbers in zip(names, KEPT.values(), strict=True)
    }


def test_a_fresh_answer_is_rounded_as_a_kept_one(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    kept = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data, "float16"))
    first = kept(batch, ROLES, {})
    assert furthest(first, kept(batch, ROLES, {})) == 0


def test_several_teachers_have_each_their_files(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teachers = (tiny_model(1), tiny_model(2))
    kept = Frozen(*teachers, cache=TeacherCache(tmp_path, tiny_data))
    for batch in epochs(tiny_data, 2):
        assert torch.equal(kept(batch, ("logits",), {})["logits"], Frozen(*teachers)(batch, ("logits",), {})["logits"])
    assert len(list(tmp_path.iterdir())) == 2


def test_other_parts_of_the_same_set_share_a_file(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    for places in (torch.arange(0, 32), torch.arange(16, 48)):
        part = replace(tiny_data, train=tiny_data.train.subset(places), validation=None)
        noisy = replace(part, train=replace(part.train, labels=(part.train.labels + 1) % 4))
        kept = Frozen(teacher, cache=TeacherCache(tmp_path, noisy))
        for batch in epochs(noisy, 2):
            expected = Frozen(teacher)(batch, ROLES, {})
            assert furthest(kept(batch, ROLES, {}), expected) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_inputs_that_are_no_augmentation_are_asked_live(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    kept = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data))
    kept(batch, ROLES, {})
    moved = replace(batch, inputs=batch.inputs.flip(2), key=None)
    assert furthest(kept(moved, ROLES, {}), Frozen(teacher)(moved, ROLES, {})) == 0
    assert kept.cache is not None
    assert (kept.cache.hits, kept.cache.misses) == (0, 16)


def test_each_precision_has_a_file_of_its_own(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    (batch, *_), teacher = epochs(tiny_data, 1), tiny_model(1)
    kept, live = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data)), Frozen(teacher)
    for _ in range(2):
        assert furthest(kept(batch, ROLES, {}), live(batch, ROLES, {})) == 0  # as in a dry run
        with torch.autocast("cpu", torch.bfloat16):
            assert furthest(kept(batch, ROLES, {}), live(batch, ROLES, {})) == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert kept.cache is not None
    assert kept.cache.hits == 32


@pytest.mark.parametrize("roles", [("logits", "stage1"), (ATTENTION, "stage1"), ("stage2",)], ids=str)
def test_whole_maps_are_asked_live(roles: tuple[str, ...], tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    kept = Frozen(teacher, cache=TeacherCache(tmp_path, tiny_data))
    for batch in epochs(tiny_data, 2):
        answer, expected = kept(batch, roles, {}), Frozen(teacher)(batch, roles, {})
        assert all(torch.equal(answer[role], expected[role]) for role in roles)
    assert not list(tmp_path.iterdir())


def filled(data: Data, teacher: Tapped, folder: Path, role: str = "logits") -> Path:
    kept = Frozen(teacher, cache=TeacherCache(folder, data))
    for batch in epochs(data, 1):
        kept(batch, (role,), {})
    (file,) = folder.iterdir()
    return file


def used(data: Data, teacher: Tapped, folder: Path, role: str = "logits") -> tuple[int, int]:
    """How many entries are read from the cache and how many are computed; all of them are checked."""
    store = TeacherCache(folder, data)
    for batch in epochs(data, 1):
        answer = Frozen(teacher, cache=store)(batch, (role,), {})[role]
        assert torch.equal(answer, Frozen(teacher)(batch, (role,), {})[role])
    return store.hits, store.misses


@pytest.mark.parametrize("role", ["logits", ATTENTION, FLOW])
def test_any_damaged_byte_of_an_answer_is_noticed(role: str, tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    file = filled(tiny_data, teacher, tmp_path, role)
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    row = 8 + 9 * (4 + 4 * KEPT[role])
    for _ in range(40 if role == "logits" else 10):
        damaged = bytearray(whole)
        sample, byte = int(generator.integers(48)), int(generator.integers(8, row))
        damaged[4096 + sample * row + byte] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged)
        hits, misses = used(tiny_data, teacher, tmp_path, role)
        assert (hits, misses) in ((32, 16), (30, 18))  # the first batch is asked live in any case, and no sample alone
        assert used(tiny_data, teacher, tmp_path, role) == (32, 16)  # and it has been mended


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda whole: b"", ("is no file of cached teacher outputs", "remove it")),
    "something else": (lambda whole: b"PK\x03\x04" + whole[4:], ("is no file of cached teacher outputs",)),
    "a header cut off": (lambda whole: whole[:40], ("is no file of cached teacher outputs",)),
    "another teacher": (
        lambda whole: re.sub(rb'"teacher": "....', b'"teacher": "zzzz', whole, count=1),
        ("another teacher",),
    ),
    "another transform": (lambda whole: whole.replace(b'"pad": 1', b'"pad": 2', 1), ("another views",)),
    "another shape": (lambda whole: whole.replace(b'"shape": [4]', b'"shape": [5]', 1), ("another shape",)),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=list(DAMAGE))
def test_what_is_no_such_file_is_refused(
    damage: Any, said: tuple[str, ...], tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    file = filled(tiny_data, teacher, tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with refused(file, *said):
        used(tiny_data, teacher, tmp_path)


def test_a_file_that_ends_too_early_is_filled_again(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    file = filled(tiny_data, teacher, tmp_path)
    size = file.stat().st_size
    os.truncate(file, 4096 + 500)
    hits, misses = used(tiny_data, teacher, tmp_path)
    assert misses > 40
    assert hits + misses == 48
    assert file.stat().st_size == size


def test_other_images_other_weights_and_other_views_never_meet(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    filled(tiny_data, teacher, tmp_path)
    images = tiny_data.train.inputs.clone()  # type: ignore[union-attr]
    images[7, 3, 3] += 1
    other = replace(tiny_data, train=replace(tiny_data.train, inputs=images))
    with refused("outputs for other images", "1 of 48", "index 7", "another folder"):
        used(other, teacher, tmp_path)
    with refused("outputs of another views", "another folder"):
        used(replace(tiny_data, views=CropsAndFlips(pad=1, flip=True)), teacher, tmp_path)
    with torch.no_grad():
        teacher.module.fc.bias += 1  # type: ignore[operator, union-attr]
    assert used(tiny_data, teacher, tmp_path)[1] == 48  # of other weights it is another file
    normalised = Tapped(teacher.module, [0.1], [0.9])
    with refused("another normalisation"):
        used(tiny_data, normalised, tmp_path)


def test_two_writers_at_once(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    teacher = tiny_model(1)
    stores = [TeacherCache(tmp_path, tiny_data) for _ in range(2)]
    for batches in zip(epochs(tiny_data, 4, seed=1), epochs(tiny_data, 4, seed=2), strict=True):
        for store, batch in zip(stores, batches, strict=True):
            answer = Frozen(teacher, cache=store)(batch, ROLES, {})
            assert furthest(answer, Frozen(teacher)(batch, ROLES, {})) == 0
    assert all(store.hits > 16 for store in stores)


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with refused("cannot cache the teacher's outputs", "No space left", "MiB", "--views"):
        filled(tiny_data, tiny_model(1), tmp_path)


# --- images in files


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four classes of four training pictures, 8x8 and grey, that were last changed long ago; and one to test."""
    generator = np.random.default_rng(0)
    for name in "abcd":
        for file in [*(f"train/{name}/{number}.png" for number in range(4)), f"test/{name}/0.png"]:
            path = tmp_path / "pictures" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
            os.utime(path, (1e9, 1e9))
    return tmp_path / "pictures"


def opened(pictures: Path, image_size: int | None = None) -> Data:
    return folder.load(pictures, image_size, in_memory_bytes=0)


def test_images_in_files_are_identified_without_opening_them(
    pictures: Path, tiny_model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, teacher = opened(pictures), tiny_model(1)
    filled(data, teacher, tmp_path / "cache")
    part = replace(data, train=data.train.subset(torch.tensor([9, 2, 14])))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("it was opened"))
        TeacherCache(tmp_path / "cache", data)
        TeacherCache(tmp_path / "cache", part)
    used(data, teacher, tmp_path / "cache")
    used(opened(pictures.rename(tmp_path / "moved")), teacher, tmp_path / "cache")


def touched(file: Path) -> None:
    os.utime(file, (1e9, 1e9 + 1))


def replaced(file: Path) -> None:
    """By a picture of another size in bytes, with the time of the old one."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    os.utime(file, (1e9, 1e9))


def renamed(file: Path) -> None:
    file.rename(file.with_name("1b.png"))


def removed(file: Path) -> None:
    """All that come behind it have another number now."""
    file.unlink()


@pytest.mark.parametrize(
    ("change", "differ"), [(touched, "1 of 16"), (replaced, "1 of 16"), (renamed, "1 of 16"), (removed, "10 of 15")]
)
def test_other_files_are_other_images(
    change: Callable[[Path], None], differ: str, pictures: Path, tiny_model: Net, tmp_path: Path, refused: Any
) -> None:
    teacher = tiny_model(1)
    filled(opened(pictures), teacher, tmp_path / "cache")
    change(pictures / "train" / "b" / "1.png")
    with refused("outputs for other images", differ, "index 5", "another folder"):
        used(opened(pictures), teacher, tmp_path / "cache")


def test_images_of_another_size_are_other_images(pictures: Path, tiny_model: Net, tmp_path: Path, refused: Any) -> None:
    teacher = tiny_model(1)
    filled(opened(pictures), teacher, tmp_path / "cache")
    with refused("outputs for other images", "16 of 16"):
        used(opened(pictures, image_size=8), teacher, tmp_path / "cache")  # cut, if they were not square


def test_a_file_that_is_gone_is_named(pictures: Path, tmp_path: Path, refused: Any) -> None:
    data, file = opened(pictures), pictures / "train" / "b" / "1.png"
    file.unlink()
    with refused(file, "cannot be read", "No such file"):
        TeacherCache(tmp_path / "cache", data)


def test_images_that_nothing_tells_apart_are_refused(tiny_data: Data, tmp_path: Path, refused: Any) -> None:
    class Rows:
        shape = (48, 8, 8, 1)

        def __getitem__(self, index: Tensor) -> Tensor:
            return tiny_data.train.inputs[index]

        def fingerprint(self, place: int) -> None:
            """A table's rows have none."""

    train = replace(tiny_data.train, inputs=Rows())
    for part in (train, train.subset(torch.arange(5))):
        with refused("tiny", "no files of their own", "without teacher_cache="):
            TeacherCache(tmp_path, replace(tiny_data, train=part))


def test_two_images_of_one_number_are_refused(tiny_data: Data, tmp_path: Path, refused: Any) -> None:
    train = replace(tiny_data.train, index=torch.arange(len(tiny_data.train)) % 40)
    with refused("8 training samples of tiny", "first is index 0", "without teacher_cache="):
        TeacherCache(tmp_path, replace(tiny_data, train=train))
    twice = tiny_data.train.subset(torch.tensor([0, 1, 1, 2]))  # of a sample that is there twice nothing is mistaken
    TeacherCache(tmp_path, replace(tiny_data, train=twice))


def test_an_overwritten_file_is_another_image(tiny_data: Data, tmp_path: Path) -> None:
    from PIL import Image

    from tutelage.data.folder import load

    for part in ("train", "test"):
        for number in range(6):
            file = tmp_path / "pictures" / part / f"{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tiny_data.train.inputs[number, ..., 0].numpy()).save(file)
    data = load(tmp_path / "pictures", in_memory_bytes=0)
    before, codes = data.fingerprint, TeacherCache(tmp_path / "cache", data)._codes
    Image.fromarray(tiny_data.train.inputs[9, ..., 0].numpy()).save(tmp_path / "pictures" / "train" / "0" / "2.png")
    changed = load(tmp_path / "pictures", in_memory_bytes=0)
    assert changed.fingerprint != before
    assert (TeacherCache(tmp_path / "cache", changed)._codes != codes).tolist() == [False, True] + [False] * 4
