"""The command ``tutelage labels``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import Command

OPTIONS = ("--model", "resnet8x0.5", "--per-class", "12", "--epochs", "2", "--folds", "2", "--device", "cpu")


def test_it_lists_labels_and_says_how_to_train_on_the_repaired_ones(run: Command, tmp_path: Path) -> None:
    code, out, _ = run("labels", "digits", *OPTIONS, "--noise", "0.2", "--apply", "--out", str(tmp_path))
    assert code == 0
    assert "labels look wrong; estimated noise rate" in out
    assert "test accuracy with the labels as they are" in out
    for name in ("issues.csv", "issues.json", "labels.html", "labels.csv"):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in out
    assert f"--noise human:{tmp_path / 'labels.csv'}:cleaned" in out
    assert (tmp_path / "cleaned" / "samples.safetensors").exists()
    assert (tmp_path / "plain" / "result.json").exists()


def test_json_and_no_comparison(run: Command, tmp_path: Path) -> None:
    code, out, _ = run("labels", "digits", *OPTIONS, "--no-compare", "--json", "--out", str(tmp_path))
    summary = json.loads(out)
    assert code == 0
    assert summary["plain_accuracy"] is None
    assert summary["labels"] == 120
    assert not (tmp_path / "plain").exists()


def test_features_of_a_run_judge_the_labels(run: Command, tmp_path: Path) -> None:
    teacher, options = str(tmp_path / "teacher"), ("--per-class", "12", "--epochs", "2", "--device", "cpu")
    assert run("train", "--data", "digits", "--model", "resnet8x0.5", "--out", teacher, *options)[0] == 0
    code, out, err = run(
        "labels", "digits", "--features", teacher, "--out", str(tmp_path / "labels"), "--folds", "2", *options
    )
    assert code == 0, err
    assert "labels look wrong" in out
    assert (tmp_path / "labels" / "labels.html").exists()


def test_wrong_options_are_one_line(run: Command, tmp_path: Path) -> None:
    code, _, err = run("labels", "digits", *OPTIONS[:4], "--folds", "50", "--out", str(tmp_path))
    assert code == 2
    assert "too few for 50 folds" in err
    assert len(err.splitlines()) == 1
