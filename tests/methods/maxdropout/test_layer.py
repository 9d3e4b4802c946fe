"""MaxDropout: closed forms of the function and of the layer."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import pytest
import torch

from tests.methods.maxdropout.activations import activations
from tutelage.methods.maxdropout.layer import MaxDropout, dominant, max_dropout

# --- the function


@pytest.mark.parametrize(("rate", "dropped_count"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_number_of_dropped_units(rate: float, dropped_count: int) -> None:
    """x = 0 .. 10: a unit exactly at 1 - r is not dropped; with r = 1 all but the minimum are."""
    x = torch.arange(11.0)
    expected = torch.cat([x[: 11 - dropped_count], torch.zeros(dropped_count)])
    assert torch.equal(max_dropout(x, rate), expected)


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (6, 7), (2, 5, 3), (9,)])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_equals_a_plain_loop(shape: tuple[int, ...], rate: float) -> None:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values = x.flatten().tolist()
    low, high = min(values), max(values)
    expected = [0.0 if (value - low) / (high - low) > 1 - rate else value for value in values]
    assert max_dropout(x, rate).flatten().tolist() == expected


@pytest.mark.parametrize(("scale", "shift"), [(4.0, 0.0), (0.25, 3.0), (3.7, -1.3)])
def test_invariant_to_scale_and_shift(scale: float, shift: float) -> None:
    x = torch.randn(50, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(dominant(scale * x + shift, 0.4), dominant(x, 0.4))


def test_rate_is_a_threshold_not_a_share() -> None:
    """For rectified Gaussians, units above 1 - r of the maximum are dropped: the larger the tensor, the fewer."""
    shares = []
    for shape in ((512,), (128, 512), (16, 64, 32, 32)):
        x = activations(*shape)
        for rate in (0.3, 0.5):
            share = float(dominant(x, rate).double().mean())
            expected = 1 - NormalDist().cdf((1 - rate) * float(x.max()))
            assert share == pytest.approx(expected, abs=4 * (expected / x.numel()) ** 0.5)
            shares.append(share)
    assert shares[::2] == sorted(shares[::2], reverse=True)
    assert max(shares[4:]) < 0.02


def test_extremes_are_over_the_whole_batch() -> None:
    x = activations(4, 10)
    larger_batch = torch.cat([x, 100 * x[:1]])
    assert dominant(x, 0.5)[:4].any()
    assert not dominant(larger_batch, 0.5)[:4].any()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("value", [0.0, -2.5, 1e30])
def test_constant_input_is_unchanged(value: float) -> None:
    x = torch.full((3, 4), value, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        y = max_dropout(x, 0.3)
        y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones(3, 4))  # type: ignore[arg-type]


def test_remaining_units_and_gradients_are_unchanged() -> None:
    x = activations(8, 6, 4, 4).requires_grad_()
    y = max_dropout(x, 0.6)
    mask = dominant(x, 0.6)
    assert mask.any()
    assert not mask.all()
    assert torch.equal(y[~mask], x[~mask])
    assert not y[mask].any()
    y.sum().backward()
    assert torch.equal(x.grad, (~mask).float())  # type: ignore[arg-type]


def test_half_precision_is_compared_in_float32() -> None:
    """max - min is 100,000, which overflows in float16."""
    x = torch.tensor([-50_000.0, 0.0, 30_000.0, 50_000.0], dtype=torch.float16)
    y = max_dropout(x, 0.3)
    assert y.dtype == torch.float16
    assert y.tolist() == [*x.tolist()[:2], 0.0, 0.0]
    assert max_dropout(x.float(), 0.3).tolist() == y.tolist()


# --- the layer


def test_eval_mode_is_the_identity() -> None:
    layer, x = MaxDropout(0.5).eval(), activations(4, 5)
    assert layer(x) is x
    assert layer.total == 0
    assert torch.equal(layer.train()(x), max_dropout(x, 0.5))
    assert torch.equal(MaxDropout(0.5, active_in_eval=True).eval()(x), max_dropout(x, 0.5))


def test_share_is_over_all_units() -> None:
    layer = MaxDropout(0.5)
    assert layer.share != layer.share
    layer(torch.arange(11.0))
    assert layer.share == pytest.approx(5 / 11)
    layer(torch.zeros(9))
    assert layer.share == pytest.approx(5 / 20)
    assert not layer.state_dict()


def test_random_rate_is_uniform() -> None:
    """Of 0 .. 1000, exactly the share r is dropped."""
    layer, x = MaxDropout(0.6, random_rate=True), torch.arange(1001.0)
    torch.manual_seed(3)
    rates = torch.stack([(layer(x)[1:] == 0).float().mean() for _ in range(400)])
    assert rates.max() <= 0.6
    assert rates.mean() == pytest.approx(0.3, abs=0.03)
    assert rates.std() == pytest.approx(0.6 / 12**0.5, abs=0.02)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_invalid_rate_is_refused(rate: float, refused: Any) -> None:
    with refused("MaxDropout", "[0, 1]", rate):
        MaxDropout(rate)


def test_layer_compiles() -> None:
    torch.compiler.reset()
    layer, x = MaxDropout(0.5), activations(4, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), max_dropout(x, 0.5))
    assert layer.total == 24
