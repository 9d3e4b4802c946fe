"""Comparison of two studies or two runs, and errors for incomparable ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from tutelage.studies.difference import compare_runs, compare_studies
from tutelage.studies.results import Results

Refused = Callable[..., AbstractContextManager[None]]
WriteStudy = Callable[..., Path]


# --- studies


def shifted_metrics(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"accuracy": record["accuracy"] ** 2}


def test_differences_equal_paired_t_intervals(write_study: WriteStudy) -> None:
    a, b = write_study("a", seeds=(0, 1, 2, 3)), write_study("b", shifted_metrics, seeds=(0, 1, 2, 3))
    difference = compare_studies(a, b)
    results_a, results_b = Results.read(a), Results.read(b)
    assert len(difference.changes) == len(results_a.cells) == 10
    assert (difference.seeds, dict(difference.setup_changes), difference.only_a, difference.only_b) == (
        (0, 1, 2, 3),
        {},
        (),
        (),
    )
    for change, cell_a, cell_b in zip(difference.changes, results_a.cells, results_b.cells, strict=True):
        assert (change.condition, change.pair, change.method) == (cell_a.condition, cell_a.pair, cell_a.method)
        test = stats.ttest_rel(cell_b.values("accuracy"), cell_a.values("accuracy"))
        low, high = test.confidence_interval(0.95)
        assert change.difference is not None
        assert (change.difference.low, change.difference.high) == pytest.approx((low, high))
        assert change.difference.mean == pytest.approx((low + high) / 2)


def test_seeds_are_paired_by_number(write_study: WriteStudy) -> None:
    values = {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8}
    a = write_study("a", lambda record: {"accuracy": values[record["seed"]]}, seeds=(0, 1, 2))
    b = write_study("b", lambda record: {"accuracy": values[record["seed"]]}, seeds=(3, 2, 1))
    difference = compare_studies(a, b)
    assert difference.seeds == (1, 2)
    assert all(change.difference and change.difference.mean == 0 for change in difference.changes)
    single_seed = compare_studies(a, write_study("one", seeds=(2,)))
    assert all(change.difference and math.isnan(change.difference.low) for change in single_seed.changes)


def test_rows_of_only_one_study_and_changed_methods(write_study: WriteStudy) -> None:
    methods = {"plain": {"method": "plain", "settings": {}}, "at": {"method": "at", "settings": {"beta": 9}}}
    a = write_study("a", methods=("at", "sp"))
    b = write_study("b", methods=("at",), noise=("0.4", "0.8"))
    declaration = json.loads((b / "study.json").read_text())
    (b / "study.json").write_text(json.dumps(declaration | {"methods": methods}))
    difference = compare_studies(a, b)
    assert [(change.condition[1], change.method) for change in difference.changes] == [
        ("0.4", "teacher"),
        ("0.4", "plain"),
        ("0.4", "at"),
    ]
    assert dict(difference.setup_changes) == {"at": ({"method": "at", "settings": {}}, methods["at"])}
    assert {(cell.condition[1], cell.method) for cell in difference.only_a} == {
        *((None, method) for method in ("teacher", "plain", "at", "sp")),
        ("0.4", "sp"),
    }
    assert {cell.condition[1] for cell in difference.only_b} == {"0.8"}


def test_missing_run_of_common_seed_gives_no_difference(write_study: WriteStudy) -> None:
    def without_one_seed(record: Mapping[str, Any]) -> Mapping[str, Any]:
        hit = (record["method"], record["noise"]) == ("at", "0.4") and record["seed"] == 1
        return {"status": "failed", "error": "no"} if hit else {}

    a, b = write_study("a"), write_study("b", without_one_seed)
    missing_changes = [change for change in compare_studies(a, b).changes if change.difference is None]
    assert [(change.method, change.missing) for change in missing_changes] == [("at", "B: seed 1 failed")]
    common_seeds = compare_studies(write_study("c", seeds=(0, 2)), b)
    assert all(change.difference for change in common_seeds.changes)  # seed 1 is not asked about
    assert {change.missing for change in compare_studies(a, b, "ood_auroc").changes} == {
        "A: not measured; B: not measured",
        "A: not measured; B: seed 1 failed",
    }


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        ({"train": {"epochs": 6, "lr": 0.1}}, ["train.epochs is 5 in the first, 6 in the second", "train.lr is 0.05"]),
        ({"evaluate": {"corruptions": True}}, ["evaluate.corruptions", "True"]),
        ({"budget": 3}, ["budget is 0 in the first, 3"]),
        ({"seeds": (7, 8)}, ["seeds is [0, 1, 2] in the first, [7, 8]"]),
        ({"pairs": (("huge", "small"),)}, ["teacher is ['big'] in the first, ['huge'] in the second"]),
        ({"noise": ("0.8",)}, ["noise is [None, '0.4'] in the first, ['0.8'] in the second"]),
        ({"train": {"epoch": 5}}, ["'epoch'", "did you mean 'epochs'"]),
    ],
)
def test_incomparable_studies_are_refused(
    write_study: WriteStudy, refused: Refused, change: dict[str, Any], pieces: list[str]
) -> None:
    a, b = write_study("a"), write_study("b", **change)
    with refused(*pieces):
        compare_studies(a, b)


def test_explicit_defaults_and_hardware_are_not_refused(write_study: WriteStudy) -> None:
    a = write_study("a", train={})
    b = write_study("b", train={"epochs": 20, "device": "cuda", "workers": 0})
    assert dict(compare_studies(a, b).setup_changes) == {"train.device": ("auto", "cuda"), "train.workers": (2, 0)}


def test_changed_data_of_the_same_name_is_refused(write_study: WriteStudy, refused: Refused) -> None:
    a, b = write_study("a"), write_study("b")
    for folder, digits in ((a, "00ff"), (b, "11ff")):
        run_folder = folder / Results.read(folder).cells[1].runs[0]["folder"]
        run_folder.mkdir(parents=True)
        (run_folder / "inputs.json").write_text(json.dumps({"training data": digits}))
    with refused("the training data's fingerprint", "00ff", "11ff"):
        compare_studies(a, b)


def test_missing_study_and_unknown_metric_are_refused(
    write_study: WriteStudy, tmp_path: Path, refused: Refused
) -> None:
    with refused("no study", "empty"):
        (tmp_path / "empty").mkdir()
        compare_studies(write_study(), tmp_path / "empty")
    with refused("metric", "'speed'"):
        compare_studies(tmp_path / "study", tmp_path / "study", "speed")


# --- runs


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *, config: Mapping[str, Any] = {}, print_: str = "00ff", **result: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        declaration = {
            "data": "digits",
            "noise": "0.4",
            "seed": 0,
            "epochs": 5,
            "method": "at",
            "settings": {"beta": 1.0},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump({**declaration, **config}))
        (folder / "inputs.json").write_text(json.dumps({"training data": print_}))
        data = {"classes": ["a", "b"], "image_shape": [1, 8, 8], "counts": {"train": [9, 9], "test": [3, 4]}}
        run_result = {"test": {"accuracy": 0.5, "samples": 7}, "seconds": 2.5, "data": data, "seed": 0, "method": "at"}
        (folder / "result.json").write_text(json.dumps({**run_result, **result}))
        return folder

    return write


def test_runs_are_compared_by_field(write_run: Callable[..., Path]) -> None:
    a = write_run("a")
    b = write_run("b", config={"epochs": 6, "extra": 1}, test={"accuracy": 0.75, "samples": 7, "ece": 0.1})
    difference = compare_runs(a, b)
    assert dict(difference.config) == {"epochs": (5, 6), "extra": (None, 1)}
    assert dict(difference.numbers) == {
        "test.accuracy": (0.5, 0.75),
        "test.samples": (7, 7),
        "seconds": (2.5, 2.5),
        "test.ece": (None, 0.1),
    }


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"config": {"data": "npz:x"}, "print_": "11ff"}, ["data is 'digits' in the first, 'npz:x' in the second"]),
        ({"config": {"image_size": 16}, "print_": "11ff"}, ["image_size is None"]),
        ({"print_": "11ff"}, ["fingerprint"]),
        ({"data": {"classes": ["a", "b"], "image_shape": [1, 8, 8], "counts": {"test": [3, 5]}}}, ["test images"]),
        ({"data": {"classes": ["a", "c"], "image_shape": [1, 8, 8], "counts": {"test": [3, 4]}}}, ["classes"]),
        ({"data": 3}, ["classes"]),
    ],
)
def test_incomparable_runs_are_refused(
    write_run: Callable[..., Path], refused: Refused, changes: dict[str, Any], pieces: list[str]
) -> None:
    a, b = write_run("a"), write_run("b", **changes)
    with refused("cannot be compared", *pieces):
        compare_runs(a, b)


def test_runs_may_differ_in_conditions_and_data_path(write_run: Callable[..., Path]) -> None:
    noisy_runs = compare_runs(write_run("a"), write_run("b", config={"noise": "0.8"}, print_="11ff"))
    assert dict(noisy_runs.config) == {"noise": ("0.4", "0.8")}
    renamed_runs = compare_runs(write_run("c"), write_run("d", config={"data": "npz:copy.npz"}))
    assert dict(renamed_runs.config) == {"data": ("digits", "npz:copy.npz")}


def test_missing_damaged_and_unfinished_runs_are_refused(
    write_run: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    a, b = write_run("a"), write_run("b")
    with refused("neither a study nor a run", "nowhere"):
        compare_runs(a, tmp_path / "nowhere")
    (b / "result.json").write_text("{")
    with refused("result.json", "cannot be read"):
        compare_runs(a, b)
    (b / "result.json").write_text("[1]")
    with refused("result.json", "does not hold a table"):
        compare_runs(a, b)
    (b / "result.json").unlink()
    with refused("not finished"):
        compare_runs(a, b)
