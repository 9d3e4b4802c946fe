"""Names of conditions, and the data frame of a study."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.studies.changes import Refused, WriteStudy, failing
from tutelage.studies.results import Results, describe_condition

# --- names


def test_conditions_are_described_by_varying_axes(write_study: WriteStudy) -> None:
    single_condition = Results.read(write_study("one", noise=(None,)))
    assert single_condition.label(("digits", None, None, None, "noisy")) == "digits, correct labels"
    assert describe_condition(("digits", "0.4", "step:0.5:0.1", 100, "clean")) == (
        "digits, noise 0.4, imbalance step:0.5:0.1, 100 samples a class, teacher on clean labels"
    )
    two_pairs = Results.read(write_study("two", pairs=(("big", "small"), ("huge", "small"))))
    assert two_pairs.label(("digits", None, None, None, "noisy")) == "correct labels"
    assert (
        two_pairs.heading(("digits", "0.4", None, None, "noisy"), ("huge", "small")) == "noise 0.4, huge teaches small"
    )
    changes: dict[str, dict[str, Any]] = {"0.4": {"data": "fashion", "per_class": 100, "teacher_labels": "clean"}}
    many_conditions = Results.read(
        write_study("many", lambda r: {"imbalance": "step:0.5:0.1"} | changes.get(r["noise"], {}))
    )
    assert many_conditions.label(("fashion", "pair:0.2", "step:0.5:0.1", 100, "clean")) == (
        "fashion, noise pair:0.2, 100 samples a class, teacher on clean labels"
    )


def test_unknown_names_are_refused(write_study: WriteStudy, refused: Refused) -> None:
    results = Results.read(write_study())
    with refused("metric", "'acuracy'", "did you mean 'accuracy'"):
        results.table("acuracy")
    with refused("metric", "'method'"):
        results.ranks("method")
    with refused("interval", "'boot'", "bootstrap"):
        results.table(interval="boot")


# --- the frame


def test_frame_holds_the_records(write_study: WriteStudy) -> None:
    pytest.importorskip("pandas", reason="extra frame is not installed")
    results = Results.read(write_study(numbers=failing("sp", "0.4", 1)))
    frame = results.frame()
    assert len(frame) == len(results.runs)
    assert all(frame[name].dtype == "float64" for name in results.metrics)
    assert frame["accuracy"].isna().sum() == 1
    assert frame["accuracy"].tolist()[:3] == [run["accuracy"] for run in results.runs[:3]]
    assert frame["per_class_accuracy"][0] == {"a": 0.5, "b": 0.25}


def test_grouping_the_frame_drops_no_record(write_study: WriteStudy) -> None:
    pytest.importorskip("pandas", reason="extra frame is not installed")
    results = Results.read(write_study(pairs=(("big", "small"), ("big", "tiny"), ("huge", "small"))))
    frame = results.frame()
    assert frame["noise"].dtype == "float64"
    assert sorted(frame["noise"].unique()) == [0.0, 0.4]
    by = ["data", "noise", "imbalance", "per_class", "teacher_labels", "pair", "student", "method"]
    assert frame.groupby(by)["accuracy"].count().sum() == len(frame)
    assert set(frame["pair"]) == {"big", "huge", "big → small", "big → tiny", "huge → small"}
    teachers = frame[frame["method"] == "teacher"]
    assert len(teachers) == 2 * 2 * 3  # networks, conditions, seeds
    assert len(frame) == 12 + 3 * 2 * 4 * 3


def test_frame_preserves_types_of_conditions(write_study: WriteStudy) -> None:
    pytest.importorskip("pandas", reason="extra frame is not installed")

    def numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"per_class": 100, "imbalance": "step:0.5:0.1"} if record["noise"] else {}

    frame = Results.read(write_study(numbers=numbers, noise=(None, "pair:0.4"))).frame()
    assert set(frame["noise"]) == {"0.0", "pair:0.4"}
    assert set(frame["per_class"]) == {"all", "100"}
    assert set(frame["imbalance"]) == {"none", "step:0.5:0.1"}


def test_frame_without_pandas_names_the_extra(
    write_study: WriteStudy, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refused("pandas", "pip install 'tutelage[frame]'"):
        Results.read(write_study()).frame()
