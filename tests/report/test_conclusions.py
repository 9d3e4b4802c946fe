"""Conclusions claim only what intervals and corrected p-values support."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.report.conclusions import LEVEL, conclusion, significance, summary
from tutelage.studies.results import Results, Row

WriteStudy = Callable[..., Path]

PLAIN = (0.80, 0.82, 0.78, 0.81, 0.79)


def results_of_values(write: WriteStudy, values: Mapping[str, Sequence[float | None]], **options: Any) -> Results:
    """Results of a study with these accuracies on one condition; ``None`` is a failed run."""

    def numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
        value = values.get(record["method"], PLAIN)[record["seed"]]
        if value is None:
            return {"status": "failed", "error": "step 4: nan"}
        return {"accuracy": value, "ece": value}

    methods = [name for name in values if name not in ("plain", "teacher")]
    options = {"noise": (None,), "seeds": range(len(PLAIN)), **options}
    return Results.read(write(numbers=numbers, methods=methods, **options))


def plus(*differences: float) -> list[float]:
    return [a + b for a, b in zip(PLAIN, differences, strict=True)]


CLEAR = plus(0.05, 0.051, 0.049, 0.0505, 0.0495)
UNCORRECTED = plus(0.01, 0.03, 0.02, 0.001, 0.03)  # the interval barely excludes 0
UNSURE = plus(0.03, -0.02, 0.01, 0.0, -0.01)


def test_conclusion_names_every_significance_category(write_study: WriteStudy) -> None:
    worse = [2 * a - b for a, b in zip(PLAIN, CLEAR, strict=True)]
    accuracies = [*CLEAR[:4], None]
    values = {
        "up": CLEAR,
        "down": worse,
        "lost": UNCORRECTED,
        "same": plus(*5 * [0.05]),
        "unsure": UNSURE,
        "gone": accuracies,
    }
    rows = {row.cell.method: row for row in results_of_values(write_study, values).table()}
    assert {name: significance(rows[name]) for name in values} == {
        "up": "above",
        "down": "below",
        "lost": "uncorrected",
        "same": "constant",
        "unsure": "not_significant",
        "gone": "missing",
    }
    text = conclusion(list(rows.values()))
    assert text == (
        "Missing: gone (seed 4 failed: step 4: nan). After Holm's correction for 5 comparisons, clearly better than "
        "the plain student: up; clearly worse than the plain student: down. The interval excludes 0, but the "
        "corrected p-value is not below 0.05: lost. The difference is the same for every seed, so its variation "
        "is unknown: same. For the other 1 the interval contains 0."
    )


def test_better_and_worse_are_swapped_if_lower_is_better(write_study: WriteStudy) -> None:
    results = results_of_values(write_study, {"up": CLEAR})
    assert "clearly better than the plain student: up." in conclusion(results.table())
    assert "clearly worse than the plain student: up." in conclusion(results.table("ece"))
    assert "clearly worse than the plain student: up (+0.05)" in summary(results, "ece")[1]


def test_no_claim_without_the_corrected_p_value(write_study: WriteStudy) -> None:
    """In random studies, any method called better or worse has adjusted p < 0.05 and an interval without 0."""
    for seed in range(12):
        draws = np.random.default_rng(seed).normal(0.01, 0.01, (5, 5))
        values = {f"m{number}": plus(*row) for number, row in enumerate(draws)}
        results = results_of_values(lambda **options: write_study(f"study-{seed}", **options), values)  # noqa: B023
        for interval in ("t", "bootstrap"):
            rows = results.table(interval=interval)
            sentence = conclusion(rows)
            second = summary(results, interval=interval)[1]
            for row in rows:
                if row.gain is None:
                    continue
                claim = f"{row.cell.method} (" in second
                assert claim == (significance(row) in ("above", "below"))
                assert not claim or (row.holm is not None and row.holm < LEVEL and row.gain.low * row.gain.high > 0)
            assert ("clearly better" in sentence or "clearly worse" in sentence) == (
                "none clearly differs" not in sentence
            )


def test_random_differences_are_not_called_significant(write_study: WriteStudy) -> None:
    results = results_of_values(write_study, {"a": UNSURE, "b": UNSURE})
    assert conclusion(results.table()) == (
        "After Holm's correction for 2 comparisons, none clearly differs from the plain student. "
        "For all 2 the interval contains 0."
    )
    first, second, third_line = summary(results)
    assert first == (
        "2 methods (a; b) were compared with the plain student on digits, correct labels, big teaching small, "
        "over 5 seeds, by test accuracy."
    )
    assert second == (
        "After Holm's correction within each condition and pair, no method clearly differs from the plain student."
    )
    assert third_line.startswith(
        "Missing or not significant: 2 of 2 comparisons are not significantly different from 0 ("
    )


def test_one_seed_is_not_enough(write_study: WriteStudy) -> None:
    results = results_of_values(write_study, {"a": CLEAR, "b": UNSURE}, seeds=(2,))
    assert conclusion(results.table()) == "Too few seeds: one seed does not show the variation between seeds."
    first, second, third_line = summary(results)
    assert "over 1 seed," in first
    assert second == "One seed is not enough to compare any method with the plain student."
    assert third_line == "Missing or not significant: 2 of 2 comparisons are not significantly different from 0."


def test_missing_runs_are_named_with_their_errors(write_study: WriteStudy) -> None:
    results = results_of_values(write_study, {"plain": [*PLAIN[:4], None], "a": CLEAR})
    assert conclusion(results.table()) == (
        "Missing: plain (seed 4 failed: step 4: nan). Nothing can be compared with the plain student."
    )
    _, second, third_line = summary(results)
    assert second == "No method could be compared with the plain student."
    assert "plain with digits, correct labels is missing (seed 4 failed: step 4: nan)" in third_line
    assert "1 comparison of 1 could not be made" in third_line


def test_summary_names_conditions_with_improvements(write_study: WriteStudy) -> None:
    results = results_of_values(
        write_study, {"a": CLEAR, "b": CLEAR}, noise=(None, "0.4"), pairs=(("x", "y"), ("z", "y"))
    )
    first, second, third_line = summary(results)
    assert "under 2 conditions (correct labels; noise 0.4), x teaching y; z teaching y, over" in first
    gain = "+5.00 percentage points"
    assert f"clearly better than the plain student: a ({gain}); b ({gain}) with correct labels, x" in second
    assert third_line == "No run is missing, and every difference is significant."


def test_study_of_only_the_plain_student(write_study: WriteStudy) -> None:
    results = results_of_values(write_study, {})
    rows: list[Row] = results.table()
    assert conclusion(rows) == "Nothing can be compared with the plain student."
    assert summary(results)[1] == "No method could be compared with the plain student."


@pytest.mark.parametrize("metric", ["calibration_gap", "memorised", "ood_auroc"])
def test_metrics_without_direction_or_values_make_no_claim(write_study: WriteStudy, metric: str) -> None:
    results = results_of_values(write_study, {"a": CLEAR})
    text = " ".join([conclusion(results.table(metric)), *summary(results, metric)])
    assert "better" not in text
    assert "nan" not in text
