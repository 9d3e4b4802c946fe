"""Files of checkpoints: whole or not there, and never run."""

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
from tutelage.training.checkpoint import Checkpoints, read, restore_rng_state, rng_state, seeded

MAGIC = b"tutelage checkpoint 1 "


def state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "weights": torch.full((50,), float(epoch)), "history": [{"lr": 0.1, "name": "é"}]}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wrapped(payload: bytes) -> bytes:
    """A file whose sum is right, whatever is in it."""
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


class Hostile:
    """What an attacker pickles: unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def hostile(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"learners": Hostile(mark)}, buffer)
    return wrapped(buffer.getvalue())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "folder")
    assert checkpoints.load() is None
    assert checkpoints.latest() is None
    path = checkpoints.save(3, state(3))
    got = checkpoints.load()
    assert got is not None
    assert torch.equal(got.pop("weights"), torch.full((50,), 3.0))
    assert got == {"epoch": 3, "history": [{"lr": 0.1, "name": "é"}]}
    assert checkpoints.latest() == path
    assert read(path)["epoch"] == 3


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(keep: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for epoch in range(1, 6):
        checkpoints.save(epoch, state(epoch))
        assert names(tmp_path) == [f"fit-00-epoch-{e:05d}.ckpt" for e in range(max(1, epoch - keep + 1), epoch + 1)]


def test_epochs_are_ordered_as_numbers_and_fits_are_apart(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path, 0), Checkpoints(tmp_path, 1)
    for epoch in (99_999, 100_000):
        first.save(epoch, state(epoch))
    second.save(1, state(1))
    (tmp_path / "notes.txt").write_text("a stranger")
    (tmp_path / ".fit-00-epoch-00003.ckpt.tmp").write_text("left by a kill")
    assert first.load()["epoch"] == 100_000  # type: ignore[index]
    assert second.load()["epoch"] == 1  # type: ignore[index]
    assert Checkpoints(tmp_path, 2).load() is None


DAMAGE: dict[str, Callable[[bytes, Path], bytes]] = {
    "cut short": lambda whole, _: whole[: len(whole) // 2],
    "cut in the first line": lambda whole, _: whole[:30],
    "a flipped byte": lambda whole, _: whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
    "a flipped byte of the sum": lambda whole, _: whole[:30] + bytes([whole[30] ^ 1]) + whole[31:],
    "longer": lambda whole, _: whole + b"\0",
    "empty": lambda whole, _: b"",
    "garbage": lambda whole, _: np.random.default_rng(0).bytes(len(whole)),
    "a hostile pickle": lambda whole, mark: hostile(mark),
    "a hostile bare pickle": lambda whole, mark: wrapped(pickle.dumps(Hostile(mark), protocol=2)),
    "nothing behind a right sum": lambda whole, _: wrapped(b""),
    "garbage behind a right sum": lambda whole, _: wrapped(b"PK\x03\x04 no archive"),
    "text behind a right sum": lambda whole, _: wrapped(b"hello"),
    "something else behind a right sum": lambda whole, _: wrapped(pickle.dumps([1, 2], protocol=2)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_file_is_left_out_with_a_warning(damage: Any, tmp_path: Path) -> None:
    mark = tmp_path / "pwned"
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    first, second = checkpoints.save(1, state(1)), checkpoints.save(2, state(2))
    second.write_bytes(damage(second.read_bytes(), mark))
    with pytest.warns(TutelageWarning, match=f"{second.name} is damaged .*the one before it") as caught:
        got = checkpoints.load()
    assert len(caught) == 1
    assert len(str(caught[0].message).splitlines()) == 1
    assert got is not None
    assert got["epoch"] == 1
    first.write_bytes(damage(first.read_bytes(), mark))
    with pytest.warns(TutelageWarning) as caught:
        assert checkpoints.load() is None
    assert ["starting anew" in str(one.message) for one in caught] == [False, True]
    assert "weights_only" not in "".join(str(one.message) for one in caught)  # torch advises to load it regardless
    assert not mark.exists()


def test_the_hostile_pickle_would_work(tmp_path: Path) -> None:
    """The oracle of the test above: loaded carelessly it does make its file."""
    mark = tmp_path / "pwned"
    payload = hostile(mark).partition(b"\n")[2]
    torch.load(io.BytesIO(payload), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(f"tutelage.files.os.{step}", full)
        with refused("cannot write", "fit-00-epoch-00002.ckpt", "No space left", "free some space"):
            checkpoints.save(2, state(2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpoints.load()["epoch"] == 1  # type: ignore[index]


def test_a_name_never_stands_for_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes reach the disk before the name does."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append("flush")
        fsync(descriptor)

    def noted_replace(source: Any, target: Any) -> None:
        events.append("rename")
        assert read(Path(source))["epoch"] == 1
        assert not Path(target).exists()
        replace(source, target)

    monkeypatch.setattr("tutelage.files.os.fsync", noted_fsync)
    monkeypatch.setattr("tutelage.files.os.replace", noted_replace)
    Checkpoints(tmp_path).save(1, state(1))
    assert events[:2] == ["flush", "rename"]


def draws() -> list[float]:
    return [torch.randn(()).item(), float(np.random.normal()), random.gauss(0, 1), random.random()]


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    with seeded(5):
        draws()  # half of a pair of normal numbers is kept back by NumPy and by Python
        Checkpoints(tmp_path).save(1, {"generators": rng_state()})
        expected = draws() + draws()
    with seeded(6):
        draws()
        restore_rng_state(Checkpoints(tmp_path).load()["generators"])  # type: ignore[index]
        assert draws() + draws() == expected


def test_seeding_is_over_when_it_is_over() -> None:
    with seeded(1):
        expected = draws() + draws()
    with seeded(1):
        first = draws()
        with seeded(2), pytest.raises(RuntimeError), seeded(3):
            raise RuntimeError(draws())
        assert first + draws() == expected


def test_seeding_makes_every_generator_the_same() -> None:
    drawn = []
    for seed in (2**62 + 1, 2**62 + 1, 3):
        with seeded(seed):
            drawn.append(draws())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_a_kill_between_a_write_and_the_removal_after_it_leaves_nothing_for_good(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        Checkpoints(tmp_path, keep=3).save(epoch, {"epoch": epoch})
    checkpoints = Checkpoints(tmp_path, keep=2)
    newest = tmp_path / "fit-00-epoch-00003.ckpt"
    whole = newest.read_bytes()
    newest.write_bytes(b"")
    with pytest.warns(TutelageWarning, match="is damaged"):
        assert checkpoints.load() == {"epoch": 2}
    assert len(list(tmp_path.iterdir())) == 3  # any of them may be needed
    newest.write_bytes(whole)
    assert checkpoints.load() == {"epoch": 3}
    assert [path.name[-10:] for path in sorted(tmp_path.iterdir())] == ["00002.ckpt", "00003.ckpt"]
