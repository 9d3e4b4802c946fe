"""Measures of perturbations: closed forms, plain loops, independence of the image size; and rankings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.evaluation import perturbation_measures, rank_networks
from tutelage.evaluation.perturbations import MEASURES


def measured(delta: Tensor) -> dict[str, float]:
    inputs = torch.full_like(delta, 0.5)
    return {name: float(value[0]) for name, value in perturbation_measures(inputs, inputs + delta).items()}


def test_a_single_value() -> None:
    delta = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    delta[0, 0, 3, 4] = 0.25
    result = measured(delta)
    assert (result["l2"], result["l1"], result["l0"], result["linf"]) == (0.25, 0.25, 1, 0.25)
    assert result["amsd_0"] == 1 / 784
    assert result["amud"] < 0.001  # 0 up to the clip


def test_a_constant() -> None:
    result = measured(torch.full((1, 3, 4, 4), -0.1, dtype=torch.float64))
    assert result["amud"] == pytest.approx(1)
    assert result["amsd_0"] == 1
    assert result["amsd_1"] == result["amsd_2"] == pytest.approx(0.1)


def test_upsampling_doubles_the_l2_norm_and_not_the_others() -> None:
    delta = 0.1 * torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, large = measured(delta), measured(delta.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert large["l2"] == pytest.approx(2 * small["l2"])
    for name in ("amsd_0", "amsd_1", "amsd_2", "linf"):
        assert large[name] == pytest.approx(small[name])


def test_all_measures_equal_plain_loops() -> None:
    delta = 0.2 * torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta[:, 0, 1] = 0
    result = perturbation_measures(torch.zeros_like(delta), delta)
    assert tuple(result) == MEASURES
    for i, values in enumerate(delta.flatten(1).tolist()):
        clipped = [min(1 - 1e-8, max(1e-8, v * v)) for v in values]
        shares = [c / sum(clipped) for c in clipped]
        expected = {
            "l2": math.sqrt(sum(v * v for v in values)),
            "l1": sum(abs(v) for v in values),
            "l0": sum(v != 0 for v in values),
            "linf": max(abs(v) for v in values),
            "amud": -sum(q * math.log(q) for q in shares) / math.log(6),
        }
        expected |= {"amsd_2": expected["l2"] / math.sqrt(6), "amsd_1": expected["l1"] / 6, "amsd_0": 5 / 6}
        assert {name: float(value[i]) for name, value in result.items()} == pytest.approx(expected)


def test_rankings() -> None:
    names = ("linf", "amsd_0", "amsd_1", "amsd_2")
    robust = {**dict.fromkeys(names, 0.3), "amud": 0.2}
    middle = {**dict.fromkeys(names, 0.2), "amud": 0.2}
    fragile = {**dict.fromkeys(names, 0.1), "amud": 0.9}
    assert rank_networks({"fragile": fragile, "robust": robust, "middle": middle}) == {
        "robust": 5.5,
        "middle": 9.5,
        "fragile": 15,
    }
