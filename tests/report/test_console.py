"""Progress bars and tables of a study on a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.report.console import study_progress
from tutelage.report.terminal import print_tables
from tutelage.studies.jobs import ActiveJob, Status
from tutelage.studies.results import Results

WriteStudy = Callable[..., Path]


def test_progress_bars_show_condition_pair_failures_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 160.0, 160.0, 160.0))
    monkeypatch.setattr("tutelage.report.console.time.monotonic", lambda: next(clock))
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None)
    with study_progress(console, quiet=False) as watch:
        assert watch is not None
        watch(Status(runs=10, done=2, failed=0, skipped=2, running=()))
        work = ActiveJob("hinton-seed0-0123", "hinton, noise 0.4, big → small, seed 0", 0.5)
        watch(Status(runs=10, done=3, failed=1, skipped=2, running=(work,)))
    output = text.getvalue()
    assert "hinton, noise 0.4, big → small, seed 0" in output
    assert "3 of 10 runs done, 1 failed, 0:02:12 left" in output  # 2.5 runs in a minute, 5.5 are left


def test_progress_outside_a_terminal_is_one_line_per_count() -> None:
    text = io.StringIO()
    with study_progress(Console(file=text), quiet=False) as watch:
        assert watch is not None
        for done, failed in ((0, 0), (0, 0), (1, 0), (1, 1)):
            watch(Status(runs=2, done=done, failed=failed, skipped=0, running=(), unit="trials"))
    lines = text.getvalue().splitlines()
    assert lines == ["0 of 2 trials done", "1 of 2 trials done", "1 of 2 trials done, 1 failed"]


def test_console_tables_are_not_markdown(write_study: WriteStudy, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(Results.read(write_study(methods=("at", "[bold]sp"))))
    output = capsys.readouterr().out
    assert "[bold]sp" in output
    assert "noise 0.4" in output
    assert "|" not in output
    assert "With ± half of its 95 % interval" in " ".join(output.split())
