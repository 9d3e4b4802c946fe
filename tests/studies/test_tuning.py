"""Tuning: search ranges, trials and the choice of settings on held-out data."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tutelage.studies.plan import Planner
from tutelage.studies.study import Study
from tutelage.studies.tuning import Range, Trial, choose, space, trials_of
from tutelage.tasks import find_task

Refused = Callable[..., AbstractContextManager[None]]


def planner(**fields: object) -> Planner:
    study = Study(**{"budget": 4, "seeds": 2, "methods": "hinton,dml", **fields})
    return Planner(study, Path("here"), dict.fromkeys(study.data, "0"))


def test_default_search_ranges() -> None:
    search_space = space(planner(methods="hinton,fitnet"), "hinton")
    assert search_space == {"temperature": Range(1.0, 16.0, log=True), "alpha": Range(0.1, 0.9)}
    fitnet = space(planner(methods="hinton,fitnet"), "fitnet")
    assert fitnet["mode"].choices == ("two_stage", "joint")
    assert "kd_alpha" not in fitnet or fitnet["kd_alpha"].low > 0  # what is off stays off
    assert space(planner(), "plain") == {}


def test_search_sets_ranges_and_row_settings_are_fixed() -> None:
    settings = {"hinton": {"method": "hinton", "settings": {"alpha": 0.5}}}
    planner_with_search = planner(methods=settings, search={"hinton": {"temperature": [2, 8.5]}})
    assert space(planner_with_search, "hinton") == {"temperature": Range(2, 8.5, log=True)}


@pytest.mark.parametrize(
    ("search", "fragments"),
    [
        ({"temprature": [1, 2]}, ["temprature", "temperature"]),
        ({"temperature": [8, 2]}, ["temperature", "8", "2"]),
        ({"temperature": []}, ["temperature", "empty"]),
    ],
)
def test_invalid_search_is_refused(search: dict[str, object], fragments: list[str], refused: Refused) -> None:
    with refused(*fragments):
        space(planner(search={"hinton": search}), "hinton")


def test_search_of_a_parameter_that_the_row_sets_is_refused(refused: Refused) -> None:
    settings = {"hinton": {"method": "hinton", "settings": {"alpha": 0.5}}}
    with refused("alpha", "one of the two"):
        space(planner(methods=settings, search={"hinton": {"alpha": [0.1, 0.2]}}), "hinton")


def test_range_description() -> None:
    assert Range(1, 16, log=True).words == "from 1 to 16 on a logarithmic scale"
    assert Range(2, 4, whole=True).words == "a whole number from 2 to 4"
    assert Range(choices=("a", None)).words == "one of a, None"


def test_fractions_cover_a_range() -> None:
    assert [Range(1, 16, log=True).at(x) for x in (0, 0.5, 0.999999)] == [1, 4, pytest.approx(16, rel=1e-3)]
    assert [Range(0, 2).at(x) for x in (0, 0.5)] == [0, 1]
    assert {Range(2, 4, whole=True).at(i / 100) for i in range(100)} == {2, 3, 4}
    assert {Range(choices=("a", None)).at(i / 100) for i in range(100)} == {"a", None}


def test_every_method_gets_equal_trials_and_its_own_settings_first() -> None:
    planner_with_budget = planner(noise=[0, 0.4], methods="hinton,rkd")
    trials = trials_of(planner_with_budget)
    counts: dict[tuple[object, str], int] = {}
    for trial in trials:
        counts[trial.run.case, trial.run.row] = counts.get((trial.run.case, trial.run.row), 0) + 1
        assert trial.run.seed == 2  # none of the seeds that the table is of
        assert trial.run.job.config.validation > 0
    assert set(counts.values()) == {4}
    assert len(counts) == 2 * 2
    assert trials[0].settings == {}
    assert len({trial.run.job.key for trial in trials}) == len(trials)
    assert [trial.settings for trial in trials] == [
        trial.settings for trial in trials_of(planner_with_budget)
    ]  # reproducible
    assert trials_of(planner(budget=0)) == []


class FakeStore:
    def __init__(self, scores: dict[str, float | None]) -> None:
        self.scores = scores

    def record(self, run: object) -> dict[str, object]:
        score = self.scores[run.job.key]  # type: ignore[attr-defined]
        return {"curve": None if score is None else {"validation_accuracy": [0.99, score]}}


def test_last_epoch_on_held_out_data_decides_and_ties_go_to_the_first() -> None:
    trials = [trial for trial in trials_of(planner(methods="hinton")) if trial.run.row == "hinton"]
    keys = [trial.run.job.key for trial in trials]
    selected = choose(
        trials, FakeStore(dict(zip(keys, [0.5, None, 0.7, 0.7], strict=True))), find_task("classification")
    )  # type: ignore[arg-type]
    assert selected.settings == {(trials[0].run.case, "hinton"): trials[2].settings}
    assert [record["chosen"] for record in selected.trials] == [False, False, True, False]
    assert [record["score"] for record in selected.trials] == [0.5, None, 0.7, 0.7]
    without_scores = choose(trials, FakeStore(dict.fromkeys(keys)), find_task("classification"))  # type: ignore[arg-type]
    assert without_scores.settings == {}


def test_table_uses_the_chosen_settings(tiny_npz: str, tmp_path: Path) -> None:
    from tutelage.studies.runner import run_study
    from tutelage.studies.workers import LocalWorkers

    study = Study(
        data=tiny_npz,
        students="resnet8x0.25",
        teachers="resnet8x0.25",
        methods="hinton",
        seeds=1,
        budget=3,
        train={"epochs": 5, "batch_size": 8, "lr": 0.1, "device": "cpu"},
    )
    results = run_study(study, tmp_path, workers=LocalWorkers(1))
    assert len(results.trials) == 3
    (best,) = [trial for trial in results.trials if trial["chosen"]]
    assert best["score"] == max(trial["score"] for trial in results.trials)
    (hinton,) = [record for record in results.runs if record["method"] == "hinton"]
    assert hinton["settings"] == best["settings"]
    assert hinton["seed"] == 0
    assert best["seed"] == 1
    trial_records = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [record["score"] for record in trial_records] == [record["score"] for record in results.trials]
    assert run_study(study.replace(budget=0), tmp_path, workers=LocalWorkers(1)).trials == ()


def test_trials_are_compared_by_value() -> None:
    (first, *_) = trials_of(planner())
    assert isinstance(first, Trial)
    assert first == trials_of(planner())[0]
