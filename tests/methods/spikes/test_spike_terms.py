"""Losses between spike trains: closed forms, a reference in plain loops, gradients, and wrong windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.methods.spikes.terms import HiddenWindowMatching, WindowMatching, window_counts, window_distance
from tutelage.models.outputs import Outputs

WINDOWS = [(1, 1), (3, 1), (4, 2), (4, 3), (5, 5), (12, 1), (12, 6)]


def trains(seed: int, steps: int = 12, neurons: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(4, steps, neurons, generator=generator, dtype=torch.float64) < 0.4).double()


def reference(student: Tensor, teacher: Tensor, width: int, stride: int) -> list[float]:
    """(c^S - c^T)^2, mean over windows and neurons, one sample after another; windows are cut at the last step."""
    steps = student.shape[1]
    starts = [0]
    while starts[-1] + width < steps:
        starts.append(starts[-1] + stride)
    values = []
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        squares = [
            (sum(one[t][c] - other[t][c] for t in range(start, min(start + width, steps)))) ** 2
            for start in starts
            for c in range(student.shape[2])
        ]
        values.append(sum(squares) / len(squares))
    return values


@pytest.mark.parametrize(("width", "stride"), WINDOWS)
@pytest.mark.parametrize("steps", [12, 13])
def test_distance_is_that_of_plain_loops(width: int, stride: int, steps: int) -> None:
    student, teacher = trains(0, steps), trains(1, steps)
    expected = torch.tensor(reference(student, teacher, width, stride), dtype=torch.float64)
    torch.testing.assert_close(window_distance(student, teacher, width, stride), expected)
    assert (expected > 0).any()


def test_width_1_is_the_hamming_distance_and_depends_on_the_order() -> None:
    student, teacher = trains(0), trains(1)
    distance = window_distance(student, teacher, 1, 1)
    torch.testing.assert_close(distance, (student != teacher).double().flatten(1).mean(1))
    assert not torch.equal(window_distance(student.roll(1, 1), teacher, 1, 1), distance)


def test_width_of_all_steps_matches_counts_in_any_order() -> None:
    student, teacher = trains(0), trains(1)
    distance = window_distance(student, teacher, 12, 6)
    torch.testing.assert_close(distance, (student.sum(1) - teacher.sum(1)).square().mean(1))
    assert torch.equal(window_distance(student.roll(5, 1), teacher, 12, 6), distance)
    assert torch.equal(window_distance(student[:, torch.randperm(12)], teacher, 12, 6), distance)


def test_it_is_0_exactly_where_all_counts_agree() -> None:
    student = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1])[None, :, None]
    teacher = torch.tensor([0.0, 1, 1, 0, 0, 1, 1, 0])[None, :, None]
    assert window_distance(student, teacher, 2, 2) == 0
    assert window_distance(student, teacher, 2, 1) > 0
    assert window_distance(student, student, 3, 1) == 0
    assert window_counts(student, 4, 2).flatten().tolist() == [2, 2, 2]


def test_each_step_is_in_a_window() -> None:
    for width, stride in WINDOWS:
        for steps in (12, 13, 25):
            student = torch.zeros(steps, steps, 1)
            student[range(steps), range(steps), 0] = 1
            assert (window_distance(student, torch.zeros_like(student), width, stride) > 0).all()


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    student, teacher = trains(0).requires_grad_(), trains(1).requires_grad_()
    window_distance(student, teacher, 4, 2).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    counts = (window_counts(student, 4, 2) - window_counts(teacher, 4, 2)).detach()
    assert student.grad[0, 0, 0] == pytest.approx(2 * counts[0, 0, 0].item() / (5 * 3))  # step 0 is in one window
    torch.testing.assert_close(student.grad[0, 2], 2 * (counts[0, 0] + counts[0, 1]) / (5 * 3))  # step 2 in two


@pytest.mark.parametrize("shape", [(4, 12, 2), (4, 11, 3), (3, 12, 3)])
def test_trains_of_other_shapes_are_refused(shape: tuple[int, ...], refused: Any) -> None:
    with refused("(4, 12, 3)", shape, "cannot be compared"):
        window_distance(trains(0), torch.zeros(shape), 4, 2)


@pytest.mark.parametrize(
    ("width", "stride", "piece"),
    [(0, 1, "got width 0"), (13, 1, "1 to 12 of"), (4, 5, "got stride 5"), (4, 0, "stride 0")],
)
def test_impossible_windows_are_refused(width: int, stride: int, piece: str, refused: Any) -> None:
    with refused("window", piece):
        window_distance(trains(0), trains(1), width, stride)


def test_terms_are_values_of_samples() -> None:
    student, teacher = trains(0), trains(1)
    term = WindowMatching(4, 2)
    value = term(Outputs(None, {"spikes": student}), Outputs(None, {"spikes": teacher}), None)
    torch.testing.assert_close(value, window_distance(student, teacher, 4, 2))
    hidden = HiddenWindowMatching(4, 2)
    outputs = [Outputs(None, {"hidden_spikes": values}) for values in (student, teacher)]
    hidden.build(*outputs)
    assert isinstance(hidden.adapter, nn.Identity)
    torch.testing.assert_close(hidden(*outputs, None), window_distance(student, teacher, 4, 2) / 16)


def test_hidden_spikes_of_other_widths_have_an_adapter(refused: Any) -> None:
    student, teacher = trains(0, neurons=2), trains(1, neurons=5)
    outputs = [Outputs(None, {"hidden_spikes": values}) for values in (student, teacher)]
    term = HiddenWindowMatching(4, 2)
    with refused("HiddenWindowMatching needs its adapter"):
        term(*outputs, None)
    term.build(*outputs)
    term.double()
    weight, bias = (value.detach() for value in term.parameters())
    assert weight.shape == (5, 2)
    mapped = window_counts(student, 4, 2) / 4 @ weight.T + bias
    expected = (mapped - window_counts(teacher, 4, 2) / 4).square().mean((1, 2))
    torch.testing.assert_close(term(*outputs, None).detach(), expected)
