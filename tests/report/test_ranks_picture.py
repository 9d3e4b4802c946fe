"""The picture of average ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from matplotlib.image import imread

from tutelage.report.plots import alike, plot_ranks
from tutelage.studies.results import Ranks
from tutelage.studies.statistics import critical_difference

Refused = Callable[..., AbstractContextManager[None]]


@pytest.mark.parametrize("methods", [2, 3, 10, 25])
def test_it_is_drawn(tmp_path: Path, methods: int) -> None:
    places = {f"$\\nothing{number}$": 1.0 + number * 0.9 for number in range(methods - 1)} | {"plain": float(methods)}
    plot_ranks(Ranks("nll", places, 30, critical_difference(methods, 30), None, {}), tmp_path / "ranks.png")
    assert imread(tmp_path / "ranks.png").std() > 0.05


def test_one_method_makes_no_picture(tmp_path: Path, refused: Refused) -> None:
    with refused("1 method", "two are needed"):
        plot_ranks(Ranks("accuracy", {"plain": 1.0}, 3, None, None, {}), tmp_path / "ranks.png")


def test_bars_join_what_the_critical_difference_does_not_part() -> None:
    assert alike([1.0, 2.0, 3.5, 5.0], 1.6) == [(1.0, 2.0), (2.0, 3.5), (3.5, 5.0)]
    assert alike([1.0, 2.0, 3.0], 2.0) == [(1.0, 3.0)]  # those within are not drawn again
    assert alike([1.0, 2.5, 4.0], 1.0) == []
    assert alike([1.5, 1.5, 3.0], 1.0) == []  # equal ranks stand on one spot
