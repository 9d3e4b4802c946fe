"""OFD: the partial distance in closed form and by loops in float64, margins, connectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage import losses, terms
from tutelage.models.outputs import Outputs


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MAPS, TARGETS, MARGIN = features(3, 2, 4, 4), features(3, 2, 4, 4, seed=1), torch.tensor([-0.5, -0.1]).double()


def test_partial_distance_by_loops() -> None:
    expected = []
    for sample, target in zip(MAPS.tolist(), TARGETS.tolist(), strict=True):
        total = 0.0
        for channel, margin in enumerate(MARGIN.tolist()):
            for row, target_row in zip(sample[channel], target[channel], strict=True):
                for s, t in zip(row, target_row, strict=True):
                    limit = max(t, margin)
                    if s > limit or t > 0:
                        total += (s - limit) ** 2
        expected.append(total)
    value = losses.partial_distance(MAPS, TARGETS, MARGIN)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1.0, 3.0, 4.0),  # active: the squared distance, from below
        (5.0, 3.0, 4.0),  # and from above
        (-4.0, -0.5, 0.0),  # inactive: low enough
        (0.5, -0.5, 1.0),  # too high
        (0.0, -9.0, 1.0),  # below the margin -1, which is the target
        (-1.0, -9.0, 0.0),
    ],
)
def test_one_neuron(student: float, teacher: float, expected: float) -> None:
    value = losses.partial_distance(
        torch.full((1, 1, 1, 1), student), torch.full((1, 1, 1, 1), teacher), torch.tensor([-1.0])
    )
    assert value.item() == expected


def test_distance_to_a_teacher_without_inactive_neurons_is_that_of_a_hint() -> None:
    value = losses.partial_distance(MAPS, TARGETS.abs(), MARGIN)
    torch.testing.assert_close(value, 2 * losses.hint_loss(MAPS, TARGETS.abs()))


def test_gradient_never_raises_inactive_neurons() -> None:
    student = MAPS.clone().requires_grad_()
    losses.partial_distance(student, TARGETS, MARGIN).sum().backward()
    assert student.grad is not None
    assert (student.grad[TARGETS <= 0] >= 0).all()
    assert (student.grad[TARGETS > 0] < 0).any()


def test_features_of_other_shapes_are_refused(refused: Any) -> None:
    with refused("(3, 2, 4, 4)", "(1, 2, 4, 4)", "regressor"):
        losses.partial_distance(MAPS, TARGETS[:1], MARGIN)


def test_a_margin_is_the_mean_of_the_negative_values_of_all_batches() -> None:
    term = terms.FeatureOverhaul((("s", "t"),)).double()
    batches = [2 * features(4, 3, 5, 5, seed=seed) + torch.tensor([0.0, 1.0, 50.0])[:, None, None] for seed in range(3)]
    term.build(Outputs(None, {"s": features(4, 2, 5, 5)}), Outputs(None, {"t": batches[0]}))
    assert term.margins is not None
    for maps in batches:
        term(Outputs(None, {"s": features(4, 2, 5, 5)}), Outputs(None, {"t": maps}), None)
    together = torch.cat(batches)
    expected = [float(channel[channel < 0].mean()) if (channel < 0).any() else 0.0 for channel in together.unbind(1)]
    assert term.margins[0].mean.tolist() == pytest.approx(expected, rel=1e-12)
    assert expected[2] == 0
    before = term.margins[0].mean.clone()
    with torch.no_grad():
        term(Outputs(None, {"s": features(4, 2, 5, 5)}), Outputs(None, {"t": 9 * batches[0]}), None)
    assert term.margins[0].mean.equal(before)  # only training steps count


def test_margin_of_normally_distributed_features_is_that_of_the_authors() -> None:
    """From scale s and shift m of a batch normalisation: m - s phi(m / s) / Phi(-m / s)."""
    scale, shift = 1.5, 0.4
    phi = math.exp(-((shift / scale) ** 2) / 2) / math.sqrt(2 * math.pi)
    expected = shift - scale * phi / (0.5 * math.erfc(shift / scale / math.sqrt(2)))
    term = terms.FeatureOverhaul((("s", "t"),)).double()
    maps = scale * features(400, 1, 16, 16) + shift
    student = Outputs(None, {"s": features(400, 1, 16, 16, seed=1)})
    term.build(student, Outputs(None, {"t": maps}))
    term(student, Outputs(None, {"t": maps}), None)
    assert term.margins is not None
    assert term.margins[0].mean.item() == pytest.approx(expected, rel=1e-2)


def test_term_halves_the_weight_of_each_shallower_stage_and_pools() -> None:
    term = terms.FeatureOverhaul((("s", "t"), ("s", "t")))
    pair = Outputs(None, {"s": features(3, 5, 8, 8)}), Outputs(None, {"t": TARGETS})
    term.build(*pair)
    assert term.connectors is not None
    assert term.margins is not None
    term.connectors[1].load_state_dict(term.connectors[0].state_dict())
    value = term(*pair, None)
    pooled = torch.nn.functional.adaptive_avg_pool2d(term.connectors[0](pair[0]["s"]), 4)
    single = losses.partial_distance(pooled, TARGETS, term.margins[0].mean)
    torch.testing.assert_close(value, 1.5 * single)
    value.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in term.parameters())
