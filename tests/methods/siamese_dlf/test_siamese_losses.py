"""Point-wise and pair-wise losses: closed forms, invariances and references in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.methods.siamese_dlf.losses import pair_distance, point_distance, response_divergence
from tutelage.methods.siamese_dlf.terms import PairWise, PointWise, Responses
from tutelage.models.outputs import Outputs

GENERATOR = torch.Generator().manual_seed(0)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "point": point_distance,
    "pair": pair_distance,
    "response": response_divergence,
}


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def length(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def unit_positions(sample: Tensor) -> list[list[float]]:
    """The channels at each position of a map (C, H, W), scaled to length 1, in plain numbers."""
    columns = sample.flatten(1).T.tolist()
    return [[value / length(column) for value in column] for column in columns]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_equal_maps_is_zero_and_minimal(name: str) -> None:
    student = maps(3, 4, 5, 5)
    loss = LOSSES[name](student, student)
    assert loss.shape == (3,)
    assert loss.abs().max() < 1e-12
    assert (LOSSES[name](student, maps(3, 4, 5, 5)) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_student_alone(name: str) -> None:
    student, teacher = maps(2, 3, 4, 4).requires_grad_(), maps(2, 3, 4, 4).requires_grad_()
    LOSSES[name](student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda values: LOSSES[name](values, teacher.detach()), student)


def test_point_distance_equals_plain_loops() -> None:
    student, teacher = maps(2, 3, 2, 4), maps(2, 3, 2, 4)
    for b, value in enumerate(point_distance(student, teacher)):
        pairs = list(zip(unit_positions(student[b]), unit_positions(teacher[b]), strict=True))
        expected = sum(sum((s - t) ** 2 for s, t in zip(*pair, strict=True)) for pair in pairs) / len(pairs)
        assert value == pytest.approx(expected)


def test_point_distance_of_opposite_maps_is_four() -> None:
    student = maps(2, 3, 4, 4)
    torch.testing.assert_close(point_distance(student, -student), torch.full((2,), 4.0, dtype=torch.float64))


def test_pair_distance_equals_plain_loops() -> None:
    student, teacher = maps(2, 3, 2, 4), maps(2, 5, 2, 4)
    for b, value in enumerate(pair_distance(student, teacher)):
        one, two = unit_positions(student[b]), unit_positions(teacher[b])
        total = 0.0
        for p in range(8):
            for q in range(8):
                cosines = [sum(a * c for a, c in zip(m[p], m[q], strict=True)) for m in (one, two)]
                total += (cosines[0] - cosines[1]) ** 2
        assert value == pytest.approx(total / 64)


def test_response_divergence_equals_plain_loops() -> None:
    student, teacher = maps(2, 1, 3, 3), maps(2, 1, 3, 3)
    for b, value in enumerate(response_divergence(student, teacher)):
        total = 0.0
        for z, v in zip(student[b].flatten().tolist(), teacher[b].flatten().tolist(), strict=True):
            p, q = 1 / (1 + math.exp(-v)), 1 / (1 + math.exp(-z))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert value == pytest.approx(total / 9)


def test_response_divergence_has_the_gradient_of_cross_entropy() -> None:
    student, teacher = maps(2, 1, 3, 3).requires_grad_(), maps(2, 1, 3, 3)
    (own,) = torch.autograd.grad(response_divergence(student, teacher).sum(), student)
    entropy = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    (other,) = torch.autograd.grad(entropy.flatten(1).mean(1).sum(), student)
    torch.testing.assert_close(own, other)


def test_confident_responses_stay_finite() -> None:
    student = torch.tensor([[[[300.0, -300.0]]]], requires_grad=True)
    loss = response_divergence(student, -student.detach())
    assert loss.detach() == pytest.approx(300)
    loss.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_rotated_channels_separate_the_two_losses() -> None:
    student = maps(2, 6, 5, 5)
    rotation = torch.linalg.qr(maps(6, 6))[0]
    rotated = torch.einsum("dc,bchw->bdhw", rotation, student)
    assert pair_distance(rotated, student).abs().max() < 1e-12
    assert (point_distance(rotated, student) > 0.1).all()


@pytest.mark.parametrize("name", ["point", "pair"])
def test_scale_of_each_position_does_not_matter(name: str) -> None:
    student, teacher = maps(2, 6, 5, 5), maps(2, 6, 5, 5)
    scale = torch.rand(2, 1, 5, 5, generator=GENERATOR, dtype=torch.float64) + 0.1
    torch.testing.assert_close(LOSSES[name](scale * student, teacher), LOSSES[name](student, teacher))


def test_large_maps_are_pooled_before_positions_are_compared() -> None:
    student, teacher = maps(2, 3, 22, 22), maps(2, 4, 22, 22)
    pooled = [F.max_pool2d(values, 2) for values in (student, teacher)]
    torch.testing.assert_close(pair_distance(student, teacher), pair_distance(*pooled))
    assert not torch.allclose(pair_distance(student, teacher), pair_distance(student, teacher, positions=22))


@pytest.mark.parametrize("name", LOSSES)
def test_map_of_a_teacher_with_another_stride_is_resized(name: str) -> None:
    student, teacher = maps(2, 3, 8, 8), maps(2, 3, 5, 5)
    resized = F.interpolate(teacher, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(LOSSES[name](student, teacher), LOSSES[name](student, resized))


def test_other_channels_and_samples_are_refused(refused: Any) -> None:
    with refused("3 and 4 channels"):
        point_distance(maps(2, 3, 4, 4), maps(2, 4, 4, 4))
    for loss in LOSSES.values():
        with refused("different samples"):
            loss(maps(2, 3, 4, 4), maps(1, 3, 4, 4))


def test_maps_of_zeros_have_no_gradient_but_stay_finite() -> None:
    for loss in (point_distance, pair_distance):
        student = torch.zeros(1, 3, 4, 4, requires_grad=True)
        loss(student, torch.randn(1, 3, 4, 4)).sum().backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_terms_of_identical_networks_are_zero() -> None:
    outputs = Outputs(maps(2, 1, 5, 5), {"stage4": maps(2, 3, 8, 8)})
    point = PointWise("stage4", "stage4")
    point.build(outputs, outputs)
    adapter = point.adapter
    assert isinstance(adapter, nn.Conv2d)
    assert adapter.weight.shape == (3, 3, 1, 1)
    with torch.no_grad():
        adapter.weight.copy_(torch.eye(3)[:, :, None, None])
        assert adapter.bias is not None
        adapter.bias.zero_()
    for term in (point, PairWise("stage4", "stage4"), Responses()):
        value = term(outputs, outputs, None)
        assert value.shape == (2,)
        assert value.abs().max() < 1e-6


def test_adapter_maps_to_the_channels_of_the_teacher(refused: Any) -> None:
    student, teacher = (Outputs(None, {"stage4": maps(2, channels, 8, 8)}) for channels in (3, 7))
    term = PointWise("stage4", "stage4")
    with refused("an adapter", "build"):
        term(student, teacher, None)
    term.build(student, teacher)
    adapter = term.adapter
    term.build(student, teacher)
    assert term.adapter is adapter
    assert term(student, teacher, None).shape == (2,)
