"""No change of the code moves a number of an existing run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden import in_fixed_environment, stored, this_machine

pytestmark = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="the stored numbers are of AVX2 kernels"
)


@pytest.fixture(scope="module")
def recorded_results() -> dict[str, Any]:
    runs = stored()
    if runs is None:
        pytest.skip(f"no numbers are stored for {this_machine()}")
    return runs


@pytest.fixture(scope="module")
def runs(recorded_results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_fixed_environment(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("method", ["plain", "hinton", "fitnet", "dml", "pdiff", "akdg"])
def test_students_and_results_are_those_that_are_stored(
    method: str, recorded_results: dict[str, Any], runs: dict[str, Any]
) -> None:
    _same(runs[method]["result"], recorded_results[method]["result"], method)
    assert runs[method]["student"] == recorded_results[method]["student"]


def _same(actual: Any, expected: Any, path: str) -> None:
    """Everything that is stored is there and equal; there may be more."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in actual, f"{path}: {key} is missing"
            _same(actual[key], value, f"{path}.{key}")
    else:
        assert actual == expected, path


def test_one_number_that_moved_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a\.nll"):
        _same({"accuracy": 0.5, "nll": 1.1}, {"accuracy": 0.5, "nll": 1.0}, "a")
