"""A run folder or a study of somebody else with pipes, devices, folders, links and huge files where files should be.

Nothing waits for a pipe or reads a device: what is read gives a value or an error of one line.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tests.test_readers import check_reader
from tutelage.cli import main
from tutelage.config import Config, read_config
from tutelage.data import open_data
from tutelage.data.conditions.files import read_columns, read_matrix
from tutelage.files import LARGEST, read_file
from tutelage.report.page import page
from tutelage.runs import RunFolder, execute, open_model
from tutelage.studies.difference import compare_runs, compare_studies
from tutelage.studies.results import Results
from tutelage.studies.study import read_study
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.checkpoint import read as read_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")

WORDS: dict[str, Any] = {"epochs": 1, "per_class": 4, "batch_size": 32, "workers": 0, "device": "cpu"}
RUN = Config(data="digits", student="resnet8x0.25", **WORDS)
NAMES = ("config.yaml", "inputs.json", "versions.json", "result.json", "metrics.jsonl", "student.safetensors")


def huge(path: Path) -> None:
    """A file with a hole, which takes no place on the disk."""
    path.touch()
    os.truncate(path, LARGEST + 1)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": Path.mkdir,
    "broken link": lambda path: path.symlink_to("nowhere"),
    "circular link": lambda path: path.symlink_to(path.name),
    "huge": huge,
    "empty": Path.touch,
}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A reader that waits for a pipe fails instead of waiting for ever."""

    def late(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    execute(RUN, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NAMES, "fit-00-epoch-00001.ckpt"])
def test_in_a_run_folder(name: str, kind: str, finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    target = next(folder.rglob(name))
    target.unlink()
    KINDS[kind](target)
    inputs = {"training data": "0" * 64}
    check_reader(lambda: RunFolder(folder).finished(RUN, inputs))
    check_reader(lambda: RunFolder(folder).history())
    check_reader(lambda: compare_runs(finished_run, folder))
    check_reader(lambda: compare_runs(folder, finished_run))
    check_reader(lambda: open_model(str(folder), open_data("digits")))
    check_reader(lambda: open_model(f"resnet8x0.25@{folder / 'student.safetensors'}", open_data("digits")))
    check_reader(lambda: Checkpoints(folder / "checkpoints").load())
    check_reader(lambda: execute(RUN, folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["study.json", "results.jsonl", "trials.jsonl", "runs"])
def test_in_a_study(name: str, kind: str, write_study: Callable[..., Path]) -> None:
    study, other = write_study("study", methods=("at",), seeds=(0,)), write_study("other", methods=("at",), seeds=(0,))
    (study / name).unlink(missing_ok=True)
    KINDS[kind](study / name)
    check_reader(lambda: page(Results.read(study)))
    check_reader(lambda: compare_studies(study, other))


@pytest.mark.parametrize("kind", KINDS)
def test_that_a_user_names(kind: str, tmp_path: Path) -> None:
    readers: dict[str, Callable[[Path], object]] = {
        "a.yaml": read_config,
        "b.toml": read_study,
        "c.npz": lambda path: open_data(f"npz:{path}"),
        "d.npy": read_matrix,
        "e.json": read_matrix,
        "f.csv": lambda path: read_columns(path, ["a"]),
        "w.pt": lambda path: open_model(f"resnet8@{path}", open_data("digits")),
        "w.safetensors": lambda path: open_model(f"resnet8@{path}", open_data("digits")),
    }
    for name, read in readers.items():
        if kind != "huge" or name not in ("e.json", "f.csv"):  # whose size nothing limits
            KINDS[kind](tmp_path / name)
            check_reader(lambda read=read, name=name: read(tmp_path / name))  # type: ignore[misc]


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == read_file(tmp_path / "a", None) == b"12345"
    with pytest.raises(OSError, match="5 bytes, and at most 4"):
        read_file(tmp_path / "a", 4)
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "link") == b"12345"


# --- links to files of the user's


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", [*NAMES, "load.py", ".lock"])
def test_a_link_in_a_run_folder_is_never_written_through(
    name: str, exists: bool, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside_file = tmp_path / "run", tmp_path / "precious"
    shutil.copytree(finished_run, folder)
    (folder / "result.json").unlink()  # so that the run goes on
    (folder / name).unlink(missing_ok=True)
    if exists:
        outside_file.write_bytes((finished_run / name).read_bytes() if (finished_run / name).exists() else b"mine")
    before = outside_file.read_bytes() if exists else None
    (folder / name).symlink_to(outside_file)
    check_reader(lambda: tutelage.train("resnet8x0.25", "digits", out=folder, **WORDS))
    assert (outside_file.read_bytes() if outside_file.exists() else None) == before


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("format", ["html", "parquet"])
def test_a_link_in_a_study_folder_is_never_written_through(
    format: str, exists: bool, write_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, outside_file = write_study("study", methods=("at",), seeds=(0, 1)), tmp_path / "precious"
    if exists:
        outside_file.write_text("mine")
    link = study / f"report.{format}"
    link.symlink_to(outside_file)
    monkeypatch.setattr("sys.argv", ["tutelage", "report", str(study), "--format", format])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert not link.is_symlink()
    assert link.stat().st_size > 100
    assert outside_file.exists() == exists
    assert not exists or outside_file.read_text() == "mine"


# --- checkpoints of another program with valid checksums


BAD_STATES: dict[str, Any] = {
    "nothing": {},
    "no table": {"settings": [1]},
    "learners": {"learners": None},
    "no learners": {"learners": []},
    "history": {"history": [1, 2]},
    "empty records": {"history": [{}, {}]},
    "other learners": {"history": [dict.fromkeys(("epoch", "lr", "forward_passes", "seconds"), 1) | {"learners": {}}]},
    "generators": {"generators": {}},
    "selected": {"selected": {"a": 1}},
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_checkpoints_with_other_content(kind: str, finished_run: Path, tmp_path: Path, refused: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    (folder / "result.json").unlink()
    (file,) = (folder / "checkpoints").glob("*.ckpt")
    state = read_checkpoint(file) if BAD_STATES[kind] else {}
    buffer = io.BytesIO()
    torch.save({**state, **BAD_STATES[kind]}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    file.write_bytes(b"tutelage checkpoint 1 " + digest + b"\n" + buffer.getvalue())
    with refused("checkpoints in", "are of another fit", "choose another folder or remove them"):
        execute(RUN, folder)
