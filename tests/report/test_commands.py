"""The commands ``tutelage report`` and ``tutelage compare``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.report.tables import flat_rows
from tutelage.studies.results import Results

WriteStudy = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """A function that runs a command line and returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tutelage", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_tables_are_written_to_the_screen_or_to_a_file(run: Command, write_study: WriteStudy, tmp_path: Path) -> None:
    folder = write_study()
    rows = flat_rows(Results.read(folder), "nll", "bootstrap")
    code, out, _ = run("report", folder, "--format", "json", "--metric", "nll", "--interval", "bootstrap")
    assert (code, json.loads(out)) == (0, rows)
    path = tmp_path / "t.csv"
    code, out, _ = run("report", folder, "--format", "csv", "--out", path)
    assert (code, out.strip()) == (0, str(path))
    assert len(path.read_text().splitlines()) == len(rows) + 1
    code, out, _ = run("report", folder, "--format", "md")
    assert "| plain |" in out


def test_page_and_parquet_are_written_to_the_folder(run: Command, write_study: WriteStudy) -> None:
    folder = write_study()
    code, out, err = run("report", folder)
    assert (code, out.strip(), err) == (0, str(folder / "report.html"), "")
    assert (folder / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    pytest.importorskip("pyarrow", reason="extra frame is not installed")
    code, out, _ = run("report", folder, "--format", "parquet")
    assert (code, out.strip()) == (0, str(folder / "report.parquet"))


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["--format", "xlsx"], ["'xlsx'", "parquet"]),
        (["--format", "md", "--metric", "acuracy"], ["'acuracy'", "'accuracy'"]),
        (["--metric", "acuracy"], ["'acuracy'", "'accuracy'"]),
        (["--format", "md", "--interval", "boot"], ["'boot'", "bootstrap"]),
        (["--interval", "boot"], ["'boot'", "bootstrap"]),
    ],
)
def test_invalid_report_commands_are_refused(
    run: Command, write_study: WriteStudy, words: list[str], pieces: list[str]
) -> None:
    code, out, err = run("report", write_study(), *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert all(piece in err for piece in pieces)


def test_folder_without_a_study_is_refused(run: Command, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, out, err = run("report", folder)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert str(folder) in err


def test_compare_two_studies(run: Command, write_study: WriteStudy) -> None:
    a = write_study("a", seeds=(0, 1, 2))
    b = write_study("b", lambda r: {"status": "missing"} if r["method"] == "at" else {}, methods=("at",), seeds=(1, 2))
    code, out, _ = run("compare", a, b)
    assert code == 0
    assert "B - A over 2 common seeds" in out
    assert "missing in B: seed 1 is missing, seed 2 is missing" in out
    assert "only in A: sp, digits, noise 0.4, big teaches small" in out
    code, out, _ = run("compare", a, b, "--metric", "ece", "--json")
    report = json.loads(out)
    assert (report["metric"], report["seeds"], len(report["differences"]), report["only_b"]) == ("ece", [1, 2], 6, [])
    assert [row["missing"] is None for row in report["differences"]] == [True, True, False] * 2
    assert all((row["low"] is None) == (row["missing"] is not None) for row in report["differences"])
    assert report["only_a"][0]["method"] == "sp"


def test_studies_with_different_training_settings_are_not_compared(run: Command, write_study: WriteStudy) -> None:
    a, b = write_study("a"), write_study("b", train={"epochs": 9})
    code, out, err = run("compare", a, b)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "train.epochs is 5 in the first, 9 in the second" in err


def test_compare_two_runs(run: Command, tmp_path: Path) -> None:
    for name, beta in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"data: digits\nsettings: {{beta: {beta}}}\n")
        (tmp_path / name / "result.json").write_text(json.dumps({"test": {"accuracy": beta / 4, "nll": None}}))
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "settings" in out
    assert "+0.25" in out
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert json.loads(out)["numbers"] == {"test.accuracy": {"a": 0.25, "b": 0.5}}
    code, out, err = run("compare", tmp_path / "a", tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
