"""Damaged study folders are refused with the damaged line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.studies.changes import Refused, WriteStudy
from tutelage.studies.results import Results


def test_folder_without_study_is_refused(tmp_path: Path, write_study: WriteStudy, refused: Refused) -> None:
    with refused("no folder", "nowhere"):
        Results.read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with refused("no folder", "file"):
        Results.read(tmp_path / "file")
    with refused("holds no study", "study.json"):
        Results.read(tmp_path)
    folder = write_study()
    (folder / "results.jsonl").write_text("\n")
    with refused("holds no run"):
        Results.read(folder)
    (folder / "results.jsonl").unlink()
    with refused("no results.jsonl yet"):
        Results.read(folder)


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        (lambda line: line[: len(line) // 2], ["line 4"]),
        (lambda line: line.replace('"status": "done"', '"status": "well"'), ["line 4", "'well'"]),
        (lambda line: line.replace('"seed": 0', '"seed": "0"'), ["line 4", "seed"]),
        (lambda line: line.replace('"seed": 0', '"seed": true'), ["line 4", "seed"]),
        (lambda line: line.replace('"seed": 0', '"seed": 9'), ["plain", "[0, 1, 2]", "run the study again"]),
        (lambda line: line.replace('"flops": 378496', '"flops": NaN'), ["line 4", "NaN"]),
        (lambda line: line.replace('"flops": 378496', '"flops": 1e999'), ["line 4", "flops", "inf"]),
        (lambda line: line.replace('"flops": 378496', '"flops": "many"'), ["line 4", "flops", "'many'"]),
        (lambda line: line.replace('"flops": 378496', '"flops": true'), ["line 4", "flops"]),
        (lambda line: line.replace('"flops": 378496, ', ""), ["line 4", "'flops'", "another version"]),
        (lambda line: line.replace('"noise": null', '"noise": [1]'), ["line 4", "noise", "[1]"]),
        (lambda line: line.replace('"method": "plain"', '"method": null'), ["line 4", "method"]),
        (lambda line: "[]", ["line 4", "not a record"]),
        (lambda line: "3", ["line 4", "not a record"]),
        (lambda line: "[" * 100_000, ["line 4"]),
        (lambda line: line + "\n" + line, ["plain", "[0, 0, 1, 2]"]),
        (lambda line: "", ["plain", "[1, 2]"]),
        (lambda line: "\udcff\udcfe", ["line 4"]),
    ],
)
def test_error_names_the_damaged_line(
    write_study: WriteStudy, refused: Refused, change: Callable[[str], str], pieces: list[str]
) -> None:
    folder = write_study()
    lines = (folder / "results.jsonl").read_text().splitlines()
    lines[3] = change(lines[3])
    (folder / "results.jsonl").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with refused("results.jsonl", *pieces):
        Results.read(folder)


def test_missing_row_is_refused(write_study: WriteStudy, refused: Refused) -> None:
    folder = write_study()
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(line for line in lines if '"method": "rkd"' not in line))
    with refused("rkd", "run the study again"):
        Results.read(folder)


@pytest.mark.parametrize(
    ("text", "fragment"), [("{", "cannot be read"), ("[]", "lacks 'name'"), ('{"seeds": []}', "another version")]
)
def test_damaged_declaration_is_refused(write_study: WriteStudy, refused: Refused, text: str, fragment: str) -> None:
    folder = write_study()
    (folder / "study.json").write_text(text)
    with refused("study.json", fragment):
        Results.read(folder)


@pytest.mark.parametrize("change", [{"seeds": []}, {"seeds": ["0"]}, {"methods": {"at": {}}}, {"train": 3}])
def test_declaration_of_wrong_types_is_refused(
    write_study: WriteStudy, refused: Refused, change: dict[str, Any]
) -> None:
    folder = write_study()
    declaration = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**declaration, **change}))
    with refused("study.json", *change, "run the study again"):
        Results.read(folder)
