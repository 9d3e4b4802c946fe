"""Channel-wise distillation: closed forms, loops, and what does not change it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.losses import channel_divergence
from tutelage.models.outputs import Outputs
from tutelage.terms import ChannelDivergence
from tutelage.terms.pixels import resized


def maps(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loops(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    """The equation, number by number."""
    values = []
    for s_image, t_image in zip(student.tolist(), teacher.tolist(), strict=True):
        total = 0.0
        for s_map, t_map in zip(s_image, t_image, strict=True):
            s, t = ([math.exp(y / temperature) for row in rows for y in row] for rows in (s_map, t_map))
            for a, b in zip(s, t, strict=True):
                total += b / sum(t) * math.log((b / sum(t)) / (a / sum(s)))
        values.append(temperature**2 * total / len(s_image))
    return values


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_equals_the_equation_in_loops(temperature: float) -> None:
    student, teacher = maps(0, 3, 5, 4, 2), maps(1, 3, 5, 4, 2)
    expected = torch.tensor(loops(student, teacher, temperature), dtype=torch.float64)
    torch.testing.assert_close(channel_divergence(student, teacher, temperature), expected)


def test_two_positions_and_one_channel() -> None:
    """phi is (sigma(d), 1 - sigma(d)) of the difference d of the positions over T."""
    student, teacher = torch.tensor([[[[0.0, 0.0]]]]).double(), torch.tensor([[[[2 * math.log(3), 0.0]]]]).double()
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert float(channel_divergence(student, teacher, 2.0)) == pytest.approx(expected)


def test_constants_of_channels_change_nothing() -> None:
    student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 4, 4)
    value = channel_divergence(student, teacher)
    shifted = channel_divergence(student + maps(2, 2, 3, 1, 1), teacher + 100 * maps(3, 2, 3, 1, 1))
    torch.testing.assert_close(shifted, value)
    assert channel_divergence(teacher + maps(2, 2, 3, 1, 1), teacher).abs().max() < 1e-12
    assert (value > 0).all()
    # Unlike in Hinton's loss, a constant of positions matters.
    assert (channel_divergence(teacher + maps(4, 2, 1, 4, 4), teacher) > 1e-3).all()


def test_the_order_of_positions_does_not_matter() -> None:
    student, teacher, order = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 4, 4), torch.randperm(16)
    permuted = (values.flatten(2)[:, :, order].view(2, 3, 4, 4) for values in (student, teacher))
    torch.testing.assert_close(channel_divergence(*permuted), channel_divergence(student, teacher))


def test_a_high_temperature_is_half_the_variance_of_the_difference() -> None:
    student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 4, 4)
    variance = (student - teacher).flatten(2).var(2, correction=0).mean(1) / 2
    torch.testing.assert_close(channel_divergence(student, teacher, 1e4), variance, rtol=1e-3, atol=0)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = maps(0, 2, 3, 2, 2).requires_grad_(), maps(1, 2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: channel_divergence(values, teacher.detach()), student)
    channel_divergence(student, teacher).sum().backward()
    assert teacher.grad is None


def test_features_of_other_widths_are_adapted() -> None:
    student, teacher = maps(0, 2, 3, 4, 4).float(), maps(1, 2, 5, 8, 8).float()
    term = ChannelDivergence("stage2", "stage3", 1.0)
    outputs = Outputs(None, {"stage2": student}), Outputs(None, {"stage3": teacher})
    term.build(*outputs)
    parameters = dict(term.named_parameters())
    assert parameters["adapter.weight"].shape == (5, 3, 1, 1)
    with torch.no_grad():
        expected = channel_divergence(resized(term.adapter(student), (8, 8)), teacher, 1.0)  # type: ignore[misc]
    torch.testing.assert_close(term(*outputs, None).detach(), expected)
    term(*outputs, None).sum().backward()
    assert parameters["adapter.weight"].grad is not None


def test_other_shapes_are_refused(refused: Any) -> None:
    with refused("(2, 3, 4, 4)", "(2, 4, 4, 4)", "cannot be compared"):
        channel_divergence(maps(0, 2, 3, 4, 4), maps(0, 2, 4, 4, 4))
    with refused("maps (B, C, H, W)"):
        channel_divergence(maps(0, 2, 3), maps(0, 2, 3))
    with refused("the student's logits (2, 3)", "networks for segmentation"):
        ChannelDivergence().build(Outputs(maps(0, 2, 3)), Outputs(maps(0, 2, 3)))
    with refused("(2, 3, 4, 4)", "(2, 5, 4, 4)"):
        ChannelDivergence().build(Outputs(maps(0, 2, 3, 4, 4)), Outputs(maps(0, 2, 5, 4, 4)))
    with refused("temperature"):
        ChannelDivergence(temperature=0)
