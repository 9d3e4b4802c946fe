"""Checkpoint files: written atomically, checked when read, and never unpickled as code."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.errors import TutelageWarning
from tutelage.models.random_state import restore_rng_state, rng_state, seeded
from tutelage.training.checkpoint import Checkpoints, read

MAGIC = b"tutelage checkpoint 1 "


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "weights": torch.full((50,), float(epoch)), "history": [{"lr": 0.1, "name": "é"}]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def with_checksum(payload: bytes) -> bytes:
    """A file with this payload and a correct checksum."""
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


class Malicious:
    """A malicious object, which creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def malicious(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"learners": Malicious(mark)}, buffer)
    return with_checksum(buffer.getvalue())


def test_load_returns_what_save_wrote(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "nested" / "folder")
    assert checkpoints.load() is None
    assert checkpoints.latest() is None
    path = checkpoints.save(3, state(3))
    loaded_state = checkpoints.load()
    assert loaded_state is not None
    assert torch.equal(loaded_state.pop("weights"), torch.full((50,), 3.0))
    assert loaded_state == {"epoch": 3, "history": [{"lr": 0.1, "name": "é"}]}
    assert checkpoints.latest() == path
    assert read(path)["epoch"] == 3


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_checkpoints_remain(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for epoch in range(1, 6):
        checkpoints.save(epoch, state(epoch))
        assert names(tmp_path) == [f"fit-00-epoch-{e:05d}.ckpt" for e in range(max(1, epoch - keep + 1), epoch + 1)]


def test_epochs_are_ordered_numerically_and_fits_are_separate(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path, 0), Checkpoints(tmp_path, 1)
    for epoch in (99_999, 100_000):
        first.save(epoch, state(epoch))
    second.save(1, state(1))
    (tmp_path / "notes.txt").write_text("an unrelated file")
    (tmp_path / ".fit-00-epoch-00003.ckpt.tmp").write_text("left by a killed process")
    assert first.load()["epoch"] == 100_000  # type: ignore[index]
    assert second.load()["epoch"] == 1  # type: ignore[index]
    assert Checkpoints(tmp_path, 2).load() is None


DAMAGE: dict[str, Callable[[bytes, Path], bytes]] = {
    "truncated": lambda content, _: content[: len(content) // 2],
    "truncated in the first line": lambda content, _: content[:30],
    "a flipped byte": lambda content, _: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "a flipped byte of the checksum": lambda content, _: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "an extra byte": lambda content, _: content + b"\0",
    "empty": lambda content, _: b"",
    "garbage": lambda content, _: np.random.default_rng(0).bytes(len(content)),
    "a malicious pickle": lambda content, mark: malicious(mark),
    "a malicious bare pickle": lambda content, mark: with_checksum(pickle.dumps(Malicious(mark), protocol=2)),
    "an empty payload with a correct checksum": lambda content, _: with_checksum(b""),
    "a broken archive with a correct checksum": lambda content, _: with_checksum(b"PK\x03\x04 no archive"),
    "text with a correct checksum": lambda content, _: with_checksum(b"hello"),
    "another pickle with a correct checksum": lambda content, _: with_checksum(pickle.dumps([1, 2], protocol=2)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_checkpoint_is_skipped_with_a_warning(damage: Any, tmp_path: Path) -> None:
    mark = tmp_path / "pwned"
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    first, second = checkpoints.save(1, state(1)), checkpoints.save(2, state(2))
    second.write_bytes(damage(second.read_bytes(), mark))
    with pytest.warns(TutelageWarning, match=f"{second.name} is damaged .*the one before it") as records:
        loaded_state = checkpoints.load()
    assert len(records) == 1
    assert len(str(records[0].message).splitlines()) == 1
    assert loaded_state is not None
    assert loaded_state["epoch"] == 1
    first.write_bytes(damage(first.read_bytes(), mark))
    with pytest.warns(TutelageWarning) as records:
        assert checkpoints.load() is None
    assert ["starting anew" in str(warning.message) for warning in records] == [False, True]
    assert "weights_only" not in "".join(str(warning.message) for warning in records)  # torch recommends an unsafe load
    assert not mark.exists()


def test_malicious_pickle_works_in_an_unsafe_load(tmp_path: Path) -> None:
    """A check of the test above: an unsafe load of this pickle does create the file."""
    mark = tmp_path / "pwned"
    payload = malicious(mark).partition(b"\n")[2]
    torch.load(io.BytesIO(payload), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_existing_checkpoints_unchanged(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(f"tutelage.files.os.{step}", full)
        with refused("cannot write", "fit-00-epoch-00002.ckpt", "No space left", "free some space"):
            checkpoints.save(2, state(2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpoints.load()["epoch"] == 1  # type: ignore[index]


def test_checkpoint_gets_its_name_after_its_content_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is flushed to disk before the file gets its name."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append("flush")
        fsync(descriptor)

    def recorded_replace(source: Any, target: Any) -> None:
        events.append("rename")
        assert read(Path(source))["epoch"] == 1
        assert not Path(target).exists()
        replace(source, target)

    monkeypatch.setattr("tutelage.files.os.fsync", recorded_fsync)
    monkeypatch.setattr("tutelage.files.os.replace", recorded_replace)
    Checkpoints(tmp_path).save(1, state(1))
    assert events[:2] == ["flush", "rename"]


def draws() -> list[float]:
    return [torch.randn(()).item(), float(np.random.normal()), random.gauss(0, 1), random.random()]


def test_restored_generators_continue_the_same_sequence(tmp_path: Path) -> None:
    with seeded(5):
        draws()  # NumPy and Python generate normal numbers in pairs and store the second one
        Checkpoints(tmp_path).save(1, {"generators": rng_state()})
        expected = draws() + draws()
    with seeded(6):
        draws()
        restore_rng_state(Checkpoints(tmp_path).load()["generators"])  # type: ignore[index]
        assert draws() + draws() == expected


def test_seeded_restores_the_outer_random_state() -> None:
    with seeded(1):
        expected = draws() + draws()
    with seeded(1):
        first = draws()
        with seeded(2), pytest.raises(RuntimeError), seeded(3):
            raise RuntimeError(draws())
        assert first + draws() == expected


def test_seeded_sets_every_generator_by_the_seed() -> None:
    numbers = []
    for seed in (2**62 + 1, 2**62 + 1, 3):
        with seeded(seed):
            numbers.append(draws())
    assert numbers[0] == numbers[1]
    assert all(a != b for a, b in zip(numbers[0], numbers[2], strict=True))


def test_old_checkpoints_that_a_killed_process_did_not_remove_are_removed_at_load(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        Checkpoints(tmp_path, keep=3).save(epoch, {"epoch": epoch})
    checkpoints = Checkpoints(tmp_path, keep=2)
    newest_file = tmp_path / "fit-00-epoch-00003.ckpt"
    content = newest_file.read_bytes()
    newest_file.write_bytes(b"")
    with pytest.warns(TutelageWarning, match="is damaged"):
        assert checkpoints.load() == {"epoch": 2}
    assert len(list(tmp_path.iterdir())) == 3  # none is removed while the newest is damaged
    newest_file.write_bytes(content)
    assert checkpoints.load() == {"epoch": 3}
    assert [path.name[-10:] for path in sorted(tmp_path.iterdir())] == ["00002.ckpt", "00003.ckpt"]
