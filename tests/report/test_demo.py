"""The demonstration and what it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.config import Config
from tutelage.errors import TutelageError
from tutelage.report.demo import STUDY, run_demo
from tutelage.report.plots import plot_gains
from tutelage.studies.compare import compare, tabulate


def result(accuracy: float, memorised: float | None = 0.1) -> dict[str, object]:
    return {"test": {"accuracy": accuracy, "ece": 0.05}, "train": {"memorised": memorised}}


def test_rows_are_paired_by_seed() -> None:
    results = {
        ("teacher", 0): result(0.9), ("teacher", 1): result(0.8),
        ("plain", 0): result(0.5), ("plain", 1): result(0.7),
        ("hinton", 0): result(0.6), ("hinton", 1): result(0.8),
    }  # fmt: skip
    teacher, plain, hinton = tabulate(results, ["teacher", "plain", "hinton"], [0, 1])
    assert teacher.gain is None
    assert plain.gain is None
    assert hinton.accuracy.mean == pytest.approx(0.7)
    assert hinton.gain is not None
    assert hinton.gain.mean == pytest.approx(0.1)
    assert hinton.gain.high - hinton.gain.low == pytest.approx(0, abs=1e-9)  # each seed gains the same
    assert hinton.accuracy.high - hinton.accuracy.low > 1


def test_without_wrong_labels_nothing_is_memorised() -> None:
    (row,) = tabulate({("plain", 0): result(0.5, None)}, ["plain"], [0])
    assert row.memorised is None


def test_the_demo_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(noise="0.4", epochs=1)
    run_demo(config, ["hinton"], [0, 1], tmp_path, teacher="resnet8", console=Console(stderr=True))
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "result.json").read_text())
    assert [row["method"] for row in kept["rows"]] == ["teacher", "plain", "hinton"]
    for row in kept["rows"]:
        assert f"{100 * row['accuracy']['mean']:.2f}" in printed
        single = [
            json.loads((tmp_path / f"seed-{seed}" / row["method"] / "result.json").read_text())["test"]["accuracy"]
            for seed in (0, 1)
        ]
        assert row["values"] == single
    assert (tmp_path / "gains.png").stat().st_size > 10_000
    noise = [
        json.loads((tmp_path / "seed-0" / name / "result.json").read_text())["data"]["record"]
        for name in ("teacher", "plain", "hinton")
    ]
    assert noise[0] == noise[1] == noise[2]  # one and the same set of wrong labels


def test_a_failing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(TutelageError, match=r"^teacher, seed 0: ResNet depth 9"):
        compare(Config(epochs=1), ["hinton"], [0], tmp_path, teacher="resnet9", workers=1)


def test_the_studys_methods_exist() -> None:
    from tutelage.methods import installed

    assert set(STUDY) <= set(installed())


def test_one_seed_is_drawn_without_intervals(tmp_path: Path) -> None:
    rows = tabulate({("plain", 0): result(0.5), ("hinton", 0): result(0.6)}, ["plain", "hinton"], [0])
    plot_gains(rows, tmp_path / "one.png", "one seed")
    assert (tmp_path / "one.png").exists()
