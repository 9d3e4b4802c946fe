"""Terminal output: names are printed literally, control characters are escaped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tutelage.data import Data
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.report.console import Terminal, print_plain, print_table

Run = Callable[..., tuple[int, str, str]]

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp"
ESCAPED = r"\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def evil_data(tiny_data: Data, tmp_path: Path) -> str:
    """A data set with malicious class names."""
    names = [EVIL, "[/]", "[bold]b", ":smile:", *(f"c{number}" for number in range(tiny_data.num_classes))]
    arrays = {"classes": np.array(names[: tiny_data.num_classes])}
    for part in ("train", "test"):
        split = tiny_data.splits[part]
        arrays |= {f"{part}_images": np.asarray(split.inputs), f"{part}_labels": np.asarray(split.labels)}
    np.savez(tmp_path / "evil.npz", **arrays)
    return f"npz:{tmp_path / 'evil.npz'}"


def clean(*texts: str) -> bool:
    return not any(character in text for text in texts for character in "\x1b\x07\x9b\u202e")


def test_names_of_classes_and_folders_are_printed_escaped(run: Run, evil_data: str) -> None:
    code, out, err = run("data", evil_data)
    assert code == 0
    assert ESCAPED in out
    assert "[/]" in out
    assert clean(out, err)
    train = ["train", "--data", evil_data, "--model", "resnet8x0.25", "--epochs", "1", "--batch-size", "8"]
    for folder in ("x/[/]", f"{EVIL}[bold]"):
        code, out, err = run(*train, "--out", folder)
        assert code == 0, err
        assert folder.replace(EVIL, ESCAPED) in out
        assert clean(out, err)
        code, out, err = run("evaluate", folder)
        assert code == 0
        assert clean(out, err)
        assert ESCAPED in out


def test_errors_and_warnings_contain_no_control_characters(run: Run) -> None:
    for words in (["train", "--data", f"npz:{EVIL}"], ["train", f"--{EVIL}"], ["data", EVIL], ["report", EVIL]):
        code, out, err = run(*words)
        assert code == 2
        assert clean(out, err)
        assert err.splitlines()[-1].startswith("error: ")
    assert str(TutelageError(f"a\n {EVIL}")) == f"a {ESCAPED}"
    assert str(TutelageWarning(f"a\r\n{EVIL}")) == f"a {ESCAPED}"


def test_length_of_messages_is_limited() -> None:
    text = str(TutelageError("begin " + "x" * 10**6 + " end"))
    assert len(text) <= 1200
    assert text.startswith("begin ")
    assert text.endswith(" end")


def test_tables_and_lines_are_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((EVIL, "[/]"), [("[/b]", "[red]")])
    print_plain(EVIL)
    Terminal().print(EVIL)
    out, _ = capsys.readouterr()
    assert clean(out)
    assert out.count(ESCAPED) == 3
    for text in ("[/]", "[/b]", "[red]"):
        assert text in out


def test_ascii_terminal_prints_escapes_and_no_traceback(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tutelage", "methods", "dml"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert process.returncode == 0
    assert b"Traceback" not in process.stderr
    process.stdout.decode("ascii")
