"""The command and the page of an experiment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments import paired  # noqa: E402 - the folder lies beside the package
from tutelage.report.markdown import Column  # noqa: E402
from tutelage.studies.functions import read_lines  # noqa: E402


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return []


def accuracy(row: str, seed: int) -> float:
    return 0.5 + 0.1 * seed + {"plain": 0.0, "ours": 0.2 + 0.001 * seed, "theirs": 0.02 * seed}[row]


@pytest.fixture
def experiment(calls: list[tuple[str, int]]) -> Callable[..., paired.Experiment]:
    def make(**fields: object) -> paired.Experiment:
        def measure(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
            calls.append((row, seed))
            return {"accuracy": accuracy(row, seed)}

        columns = {"accuracy": Column("test accuracy")}
        fields = {"rows": ("plain", "ours"), "seeds": 2, "measure": measure, **fields}
        return paired.Experiment("made-up", baseline="plain", head="# Made up", columns=columns, **fields)  # type: ignore[arg-type]

    return make


def test_recorded_runs_are_not_repeated(
    experiment: Callable[..., paired.Experiment], calls: list[tuple[str, int]]
) -> None:
    example_experiment = experiment()
    paired.main(example_experiment, ("--seeds", "0", "--rows", "plain"))
    paired.main(example_experiment, ())
    assert calls == [("plain", 0), ("ours", 0), ("plain", 1), ("ours", 1)]
    lines = read_lines(example_experiment.file)
    assert [(line["row"], line["seed"]) for line in lines] == calls
    assert lines[0]["command"] == "python -m experiments.made-up --rows 'plain' --seeds 0"
    assert list(lines[0]) == ["condition", "row", "seed", "measured", "seconds", "command", "versions", "device"]
    paired.main(example_experiment, ())
    assert read_lines(example_experiment.file) == lines


def test_page_shows_paired_differences(experiment: Callable[..., paired.Experiment]) -> None:
    paired.main(experiment(), ())
    text = (paired.RESULTS / "made-up.md").read_text()
    assert "| plain | 2 | 55.0 ± 63.5 |" in text  # t of one degree of freedom at 97.5 %: 12.706; times 10 / 2
    assert "| ours | 2 | 75.0 ± 64.2 (**+20.1 ± 0.6**†) |" in text
    assert "[made-up.jsonl](made-up.jsonl), one line a run" in text


def test_page_marks_differences_that_are_significant_after_holms_correction(
    experiment: Callable[..., paired.Experiment],
) -> None:
    paired.main(experiment(rows=("plain", "ours", "theirs"), seeds=3), ())
    text = (paired.RESULTS / "made-up.md").read_text()
    assert "| ours | 3 | 80.1 ± 25.1 (**+20.1 ± 0.2**†) |" in text
    assert "| theirs | 3 | 62.0 ± 29.8 (+2.0 ± 5.0) |" in text


def test_page_of_an_unfinished_experiment_counts_missing_runs(experiment: Callable[..., paired.Experiment]) -> None:
    paired.main(experiment(), ("--rows", "plain"))
    text = (paired.RESULTS / "made-up.md").read_text()
    assert "**Not finished: 2 runs are still to be done.**" in text
    assert "| ours | 0 | – |" in text


def test_failed_run_ends_the_command_with_its_error(experiment: Callable[..., paired.Experiment]) -> None:
    def fail(condition: str, row: str, seed: int, folder: Path) -> Mapping[str, float]:
        raise ValueError("no luck")

    with pytest.raises(SystemExit, match="4 of 4 runs of made-up failed; all · plain · seed 0: no luck"):
        paired.main(experiment(measure=fail), ())
