"""Damaged checkpoints and full disks do not change the result of a resumed fit."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.resuming import Start, StoppedError, checkpoint_contents
from tutelage.errors import TutelageWarning

# --- damaged checkpoints


def damage_truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(bytes(content))


def damage_empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
@pytest.mark.parametrize("part_to_damage", ["last", "all"])
def test_damaged_checkpoints_do_not_change_the_result(
    part_to_damage: str, damage: Any, tmp_path: Path, start: Start, state_of: Any, changed: Any
) -> None:
    student, _ = start("ema and dropout", tmp_path / "uninterrupted")
    with pytest.raises(StoppedError):
        start("ema and dropout", tmp_path / "damaged", 3)
    files = sorted((tmp_path / "damaged" / "checkpoints").iterdir())
    assert [path.name[-8:] for path in files] == ["002.ckpt", "003.ckpt"]
    damaged_files = files if part_to_damage == "all" else files[-1:]
    for path in damaged_files:
        damage(path, tmp_path / "mark")
    with pytest.warns(TutelageWarning, match="is damaged") as records:
        resumed_state, _ = start("ema and dropout", tmp_path / "damaged")
    assert len(records) == len(damaged_files)
    assert changed(state_of(student), state_of(resumed_state)) == set()
    assert checkpoint_contents(tmp_path / "damaged") == checkpoint_contents(tmp_path / "uninterrupted")


def test_damaged_checkpoint_of_a_finished_first_fit(tmp_path: Path, start: Start, state_of: Any, changed: Any) -> None:
    """The first fit is trained again, and the second one is resumed from its checkpoint."""
    student, _ = start("fitnet", tmp_path / "uninterrupted")
    with pytest.raises(StoppedError):
        start("fitnet", tmp_path / "damaged", 3)
    for path in (tmp_path / "damaged" / "checkpoints").glob("fit-00-*"):
        damage_flip(path, tmp_path)
    with pytest.warns(TutelageWarning, match="fit-00"):
        resumed_state, _ = start("fitnet", tmp_path / "damaged")
    assert changed(state_of(student), state_of(resumed_state)) == set()


def test_full_disk_stops_the_fit_with_one_line_and_the_fit_can_be_resumed(
    tmp_path: Path,
    start: Start,
    state_of: Any,
    changed: Any,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., Any],
) -> None:
    student, _ = start("hinton", tmp_path / "uninterrupted")
    with pytest.raises(StoppedError):
        start("hinton", tmp_path / "full", 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr("tutelage.files.os.fsync", full)
        with refused("No space left on device", "epoch-00003.ckpt"):
            start("hinton", tmp_path / "full")
    assert {path.name: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").iterdir()} == before
    resumed_state, _ = start("hinton", tmp_path / "full")
    assert changed(state_of(student), state_of(resumed_state)) == set()
