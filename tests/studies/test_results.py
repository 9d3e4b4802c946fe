"""Reading of a study; its table and ranks recomputed with pandas and scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from tests.studies.changes import Refused, WriteStudy, failing
from tutelage.studies.results import Results
from tutelage.studies.statistics import critical_difference

# --- the table, against other libraries


@pytest.mark.parametrize("metric", ["accuracy", "nll", "memorised", "seconds"])
def test_table_equals_pandas_and_scipy(write_study: WriteStudy, metric: str) -> None:
    pd = pytest.importorskip("pandas", reason="the oracle is pandas")
    folder = write_study(pairs=(("big", "small"), ("huge", "small")), seeds=(3, 1, 2, 7))
    raw = pd.read_json(folder / "results.jsonl", lines=True, dtype={"noise": str})
    raw["noise"] = raw["noise"].where(raw["noise"].notna(), "none").replace("None", "none")
    groups = {key: group.sort_values("seed") for key, group in raw.groupby(["noise", "teacher", "student", "method"])}
    rows = Results.read(folder).table(metric)
    assert len(rows) == len(groups) == 2 * 2 * 5
    adjusted_values: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        noise = row.cell.condition[1] or "none"
        own_values = groups[noise, *row.cell.pair, row.cell.method][metric].astype(float)
        if own_values.isna().any():
            assert (row.mean, row.gain, row.p, row.wins) == (None, None, None, None)
            continue
        assert row.mean is not None
        assert row.mean.mean == pytest.approx(own_values.mean())
        assert row.deviation == pytest.approx(own_values.std())
        if row.cell.method in ("teacher", "plain"):
            assert (row.gain, row.p, row.holm, row.wins) == (None, None, None, None)
            continue
        plain = groups[noise, *row.cell.pair, "plain"][metric].astype(float)
        test = stats.ttest_rel(own_values, plain)
        low, high = test.confidence_interval(0.95)
        assert row.gain is not None
        assert (row.gain.mean, row.gain.low, row.gain.high) == pytest.approx(
            (own_values.mean() - plain.mean(), low, high)
        )
        assert row.p == pytest.approx(test.pvalue)
        higher = own_values.to_numpy() > plain.to_numpy()
        assert row.wins == (higher if metric == "accuracy" else ~higher).sum()
        assert row.holm is not None
        adjusted_values.setdefault((noise, row.cell.pair[0]), []).append((test.pvalue, row.holm))
    for family in adjusted_values.values():
        ordered = sorted(family)
        expected = np.minimum(1, np.maximum.accumulate([p * (len(ordered) - i) for i, (p, _) in enumerate(ordered)]))
        assert [holm for _, holm in ordered] == pytest.approx(expected.tolist())


def test_bootstrap_changes_only_the_intervals(write_study: WriteStudy) -> None:
    results = Results.read(write_study())
    for t_row, bootstrap_row in zip(results.table(), results.table(interval="bootstrap"), strict=True):
        assert (t_row.deviation, t_row.p, t_row.holm, t_row.wins) == (
            bootstrap_row.deviation,
            bootstrap_row.p,
            bootstrap_row.holm,
            bootstrap_row.wins,
        )
        assert t_row.mean is not None
        assert bootstrap_row.mean is not None
        assert t_row.mean.mean == bootstrap_row.mean.mean
        values = t_row.cell.values("accuracy")
        assert values is not None
        assert min(values) - 1e-9 <= bootstrap_row.mean.low < bootstrap_row.mean.high <= max(values) + 1e-9
        assert t_row.mean.low < bootstrap_row.mean.low


def test_failed_run_makes_the_cell_missing(write_study: WriteStudy) -> None:
    results = Results.read(write_study(numbers=failing("sp", "0.4", 1)))
    rows = {(row.cell.condition[1], row.cell.method): row for row in results.table()}
    missing_row = rows["0.4", "sp"]
    assert (
        missing_row.mean,
        missing_row.deviation,
        missing_row.gain,
        missing_row.p,
        missing_row.holm,
        missing_row.wins,
    ) == (None,) * 6
    assert [run["seed"] for run in missing_row.cell.incomplete] == [1]
    assert [run["error"] for run in results.failed] == ["step 4: 'flow' became nan"]
    assert all(row.mean.n == 3 for row in rows.values() if row.mean)
    complete_rows = [rows["0.4", name] for name in ("at", "rkd")]
    smallest = min(row.p or 0 for row in complete_rows)
    assert min(row.holm or 0 for row in complete_rows) == pytest.approx(
        min(1, 2 * smallest)
    )  # of the two that have one


def test_no_gain_without_the_plain_student(write_study: WriteStudy) -> None:
    for row in Results.read(write_study(numbers=failing("plain", "0.4", 0))).table():
        if row.cell.condition[1] == "0.4":
            assert (row.gain, row.p, row.holm, row.wins) == (None,) * 4
            assert (row.mean is None) == (row.cell.method == "plain")


def test_one_seed_has_no_interval(write_study: WriteStudy) -> None:
    for interval in ("t", "bootstrap"):
        for row in Results.read(write_study(interval, seeds=(4,))).table(interval=interval):
            assert row.mean is not None
            assert row.mean.n == 1
            assert math.isnan(row.mean.low)
            assert (row.deviation, row.p, row.holm) == (None, None, None)
            assert row.gain is None or math.isnan(row.gain.high)


def test_ties_count_half_and_direction_of_metric_is_respected(write_study: WriteStudy) -> None:
    values = {"at": {"accuracy": 0.5, "ece": 0.5}, "sp": {"accuracy": 0.6, "ece": 0.6}}
    folder = write_study(numbers=lambda record: values.get(record["method"], {"accuracy": 0.5, "ece": 0.5}))
    results = Results.read(folder)
    wins = {
        (metric, row.cell.method): row.wins
        for metric in ("accuracy", "ece", "calibration_gap")
        for row in results.table(metric)
    }
    assert (wins["accuracy", "at"], wins["accuracy", "sp"], wins["ece", "sp"]) == (1.5, 3, 0)
    assert wins["calibration_gap", "sp"] is None  # best at 0, on neither side


# --- ranks


def test_ranks_equal_pandas(write_study: WriteStudy) -> None:
    pd = pytest.importorskip("pandas", reason="the oracle is pandas")
    folder = write_study(pairs=(("big", "small"), ("huge", "small")), noise=(None, "0.2", "0.4"))
    results = Results.read(folder)
    for metric, ascending in (("accuracy", False), ("brier", True)):
        raw = pd.read_json(folder / "results.jsonl", lines=True)
        raw = raw[raw["method"] != "teacher"].fillna({"noise": 0})
        blocks = raw.pivot_table(metric, ["noise", "teacher"], "method")
        expected = blocks.rank(axis=1, ascending=ascending).mean().sort_values()
        ranks = results.ranks(metric)
        assert dict(ranks.average) == pytest.approx(expected.to_dict())
        assert list(ranks.average.values()) == sorted(ranks.average.values())
        assert (ranks.blocks, ranks.unranked) == (6, {})
        assert ranks.p == pytest.approx(stats.friedmanchisquare(*blocks.to_numpy().T).pvalue)
        assert ranks.critical_difference == critical_difference(4, 6)


def test_method_with_missing_run_has_no_rank_and_all_blocks_remain(write_study: WriteStudy) -> None:
    ranks = Results.read(write_study(numbers=failing("sp", "0.4", 1))).ranks()
    assert set(ranks.average) == {"plain", "at", "rkd"}
    assert ranks.unranked == {"sp": "noise 0.4: seed 1 failed"}
    assert ranks.blocks == 2
    assert sum(ranks.average.values()) == pytest.approx(6)


def test_condition_in_which_all_runs_failed_is_included(write_study: WriteStudy) -> None:
    folder = write_study(numbers=lambda r: {"status": "failed", "error": "no data"} if r["noise"] else {})
    ranks = Results.read(folder).ranks()
    assert (ranks.blocks, dict(ranks.average)) == (2, {})
    assert ranks.unranked["plain"] == "noise 0.4: seed 0 failed, seed 1 failed, seed 2 failed"


def test_rounding_does_not_break_ties(write_study: WriteStudy) -> None:
    close = {"plain": 0.98666665, "at": 0.98666667, "sp": 0.98, "rkd": 0.99}
    ranks = Results.read(write_study(numbers=lambda r: {"accuracy": close.get(r["method"], 0.5)})).ranks()
    assert dict(ranks.average) == {"rkd": 1, "plain": 2.5, "at": 2.5, "sp": 4}


def test_no_block_if_no_method_has_the_metric(write_study: WriteStudy, refused: Refused) -> None:
    results = Results.read(write_study())
    ranks = results.ranks("memorised")
    assert (ranks.blocks, ranks.p) == (1, None)
    with refused("ood_auroc", "rank by another"):
        results.ranks("ood_auroc")
    with refused("calibration_gap", "neither direction"):
        results.ranks("calibration_gap")


def test_ranks_of_few_methods(write_study: WriteStudy) -> None:
    two_rows = Results.read(write_study("two", methods=("at",))).ranks()
    assert two_rows.p is None
    assert two_rows.critical_difference == critical_difference(2, 2)
    plain_only = Results.read(write_study("alone", methods=())).ranks()
    assert (dict(plain_only.average), plain_only.critical_difference) == ({"plain": 1}, None)
    incomplete_study = write_study("gone", lambda r: {"status": "missing"} if r["seed"] == 0 and r["noise"] else {})
    ranks = Results.read(incomplete_study).ranks()
    assert (dict(ranks.average), ranks.critical_difference, len(ranks.unranked)) == ({}, None, 4)


def test_runs_are_ordered_by_seed(write_study: WriteStudy) -> None:
    folder = write_study(seeds=(5, 0, 3))
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join([*lines[::-1], "", " "]))
    assert all([run["seed"] for run in cell.runs] == [5, 0, 3] for cell in Results.read(folder).cells)


def test_trials_are_read(write_study: WriteStudy, refused: Refused) -> None:
    folder = write_study()
    assert Results.read(folder).trials == ()
    first = json.loads((folder / "results.jsonl").read_text().splitlines()[0])
    (folder / "trials.jsonl").write_text(json.dumps(first | {"space": {}, "score": 0.5, "chosen": True}))
    assert [trial["score"] for trial in Results.read(folder).trials] == [0.5]
    (folder / "trials.jsonl").write_text(json.dumps(first))
    with refused("trials.jsonl, line 1", "'score'"):
        Results.read(folder)
