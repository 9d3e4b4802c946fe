"""The frame of the experiments: it runs what is missing, appends a line a run, and makes the page of the lines."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments import paired, raw  # noqa: E402 - the folder lies beside the package


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return []


def experiment(calls: list[tuple[str, int]]) -> paired.Experiment:
    def run(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
        calls.append((row, seed))
        return {"accuracy": 0.5 + 0.1 * seed + (0.2 if row == "ours" else 0.0)}

    metrics = {"accuracy": paired.Metric("test accuracy")}
    return paired.Experiment("made-up", "# Made up", run, ("plain", "ours"), metrics, against="plain", seeds=2)


def run(one: paired.Experiment, *arguments: str) -> None:
    paired.main(one, arguments)


def test_what_has_a_line_is_not_run_again(calls: list[tuple[str, int]]) -> None:
    one = experiment(calls)
    run(one, "--seeds", "0", "--rows", "plain")
    run(one)
    assert calls == [("plain", 0), ("ours", 0), ("plain", 1), ("ours", 1)]
    lines = raw.read(one.file)
    assert [(line["row"], line["seed"]) for line in lines] == calls
    assert lines[0]["command"] == "python -m experiments.made-up --rows 'plain' --seeds 0"
    run(one)
    assert raw.read(one.file) == lines


def test_the_page_holds_paired_differences(calls: list[tuple[str, int]]) -> None:
    one = experiment(calls)
    run(one)
    text = (paired.RESULTS / "made-up.md").read_text()
    assert "| plain | 2 | 55.0 ± 63.5 |" in text  # t of one degree of freedom at 97.5 %: 12.706; times 10 / 2
    assert "| ours | 2 | 75.0 ± 63.5 (**+20.0 ± 0.0**) |" in text
    assert "[made-up.jsonl](made-up.jsonl), a line a run" in text
