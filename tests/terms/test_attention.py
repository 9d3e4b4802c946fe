"""Attention transfer: known values, invariances, and numerically critical gradients."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.losses import attention_map, attention_transfer
from tutelage.models.outputs import Outputs
from tutelage.terms import AttentionTransfer
from tutelage.terms.attention import Form

FORMS: list[Form] = ["code", "paper"]


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_losses(student: Tensor, teacher: Tensor, p: float, form: Form) -> list[float]:
    values = []
    for pair in zip(student.tolist(), teacher.tolist(), strict=True):
        maps = []
        for sample in pair:
            pixels = [(y, x) for y in range(len(sample[0])) for x in range(len(sample[0][0]))]
            energy = [sum(abs(channel[y][x]) ** p for channel in sample) for y, x in pixels]
            norm = math.sqrt(sum(e * e for e in energy))
            maps.append([e / norm for e in energy])
        squares = [(a - b) ** 2 for a, b in zip(*maps, strict=True)]
        values.append(sum(squares) / len(squares) if form == "code" else math.sqrt(sum(squares)))
    return values


def spread(*energies: float) -> Tensor:
    """One sample, one channel, 2x2, with these values."""
    return torch.tensor(energies, dtype=torch.float32).view(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("student", "teacher", "code", "squares", "paper"),
    [
        (spread(1, 2, 0, 0), spread(0, 0, 3, 1), 0.5, 2.0, math.sqrt(2)),  # disjoint supports
        (spread(0, 5, 0, 0), spread(1, 1, 1, 1), 0.25, 1.0, 1.0),  # one-hot and uniform
    ],
)
def test_known_values(student: Tensor, teacher: Tensor, code: float, squares: float, paper: float) -> None:
    pair = Outputs(None, {"s": student}), Outputs(None, {"t": teacher})
    assert attention_transfer(student, teacher).tolist() == pytest.approx([code])
    assert (AttentionTransfer((("s", "t"),))(*pair, None) * 1024).tolist() == pytest.approx([squares])
    assert attention_transfer(student, teacher).item() * 4 == pytest.approx(squares)
    assert attention_transfer(student, teacher, form="paper").tolist() == pytest.approx([paper])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1, 2, 3])  # 3: an odd power of a negative activation
def test_equals_plain_loops(p: float, form: Form) -> None:
    student, teacher = features(3, 4, 2, 3), features(3, 5, 2, 3, seed=1)
    assert attention_transfer(student, teacher, p, form).tolist() == pytest.approx(
        reference_losses(student, teacher, p, form)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda a: 1e-9 * a,
        lambda a: 1e30 * a,
        lambda a: a[:, [2, 0, 3, 1]],
        lambda a: a.repeat(1, 3, 1, 1),
        lambda a: -a,
    ],
    ids=["shrunk", "scaled", "channels permuted", "channels repeated", "sign flipped"],
)
def test_invariances(change: Callable[[Tensor], Tensor], p: float, form: Form) -> None:
    student, teacher = features(2, 4, 3, 3), features(2, 4, 3, 3, seed=1)
    value = attention_transfer(student, teacher, p, form)
    torch.testing.assert_close(attention_transfer(change(student), teacher, p, form), value)
    torch.testing.assert_close(attention_transfer(student, change(teacher), p, form), value)


def test_maps_are_flat_and_of_unit_length() -> None:
    result = attention_map(features(3, 4, 2, 5))
    assert result.shape == (3, 10)
    torch.testing.assert_close(result.norm(dim=1), torch.ones(3).double())


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_normalised_separately(form: Form) -> None:
    student, teacher = features(1, 4, 3, 3), features(1, 4, 3, 3, seed=1)
    single_loss = attention_transfer(student, teacher, form=form)
    repeated_losses = attention_transfer(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), form=form)
    torch.testing.assert_close(repeated_losses, single_loss.repeat(2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("zero_network", ["student", "teacher", "both"])
def test_a_map_of_zeros_is_finite_in_value_and_gradient(zero_network: str, p: float, form: Form) -> None:
    student = (torch.zeros(1, 2, 2, 2) if zero_network != "teacher" else spread(0, 1, 0, 0)).requires_grad_()
    teacher = torch.zeros(1, 2, 2, 2) if zero_network != "student" else spread(0, 1, 0, 0)
    value = attention_transfer(student, teacher, p, form)
    value.sum().backward()
    size = 0.0 if zero_network == "both" else 1.0
    assert value.tolist() == pytest.approx([size / 4 if form == "code" else size])
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_at_equality_is_zero(form: Form) -> None:
    """The gradient of an explicit square root would be NaN."""
    student = features(2, 4, 3, 3).requires_grad_()
    attention_transfer(student, student.detach().clone(), form=form).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_gradient_norm_of_paper_form_is_constant_near_equality() -> None:
    teacher, direction = features(1, 4, 3, 3), features(1, 4, 3, 3, seed=1)
    sizes: dict[Form, list[float]] = {"code": [], "paper": []}
    for form, result in sizes.items():
        for distance in (1e-2, 1e-4):
            student = (teacher + distance * direction).requires_grad_()
            attention_transfer(student, teacher, form=form).sum().backward()
            assert student.grad is not None
            result.append(student.grad.norm().item())
    assert sizes["paper"][1] == pytest.approx(sizes["paper"][0], rel=0.1)
    assert sizes["code"][1] == pytest.approx(sizes["code"][0] / 100, rel=0.1)


def test_upsampling_divides_code_form_by_four_but_not_the_term() -> None:
    maps = [features(2, 4, 3, 3, seed=seed) for seed in (0, 1)]
    large = [F.interpolate(value, scale_factor=2, mode="nearest") for value in maps]
    torch.testing.assert_close(attention_transfer(*large), attention_transfer(*maps) / 4)
    term = AttentionTransfer((("s", "t"),))
    small_value, large_value = (
        term(Outputs(None, {"s": student}), Outputs(None, {"t": teacher}), None) for student, teacher in (maps, large)
    )
    torch.testing.assert_close(large_value, small_value)


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "pooled"),
    [((6, 4), (3, 2), 0), ((3, 2), (6, 4), 1)],
    ids=["student larger", "teacher larger"],
)
def test_the_larger_map_is_average_pooled(
    student_size: tuple[int, int], teacher_size: tuple[int, int], pooled: int
) -> None:
    maps = [features(2, 4, *student_size), features(2, 5, *teacher_size, seed=1)]
    value = attention_transfer(*maps)
    maps[pooled] = F.avg_pool2d(maps[pooled], 2)
    torch.testing.assert_close(value, attention_transfer(*maps))


def test_each_axis_is_pooled_to_the_smaller_size() -> None:
    tall, wide = features(2, 4, 4, 2), features(2, 5, 2, 6, seed=1)
    pooled = F.avg_pool2d(tall, (2, 1)), F.avg_pool2d(wide, (1, 3))
    torch.testing.assert_close(attention_transfer(tall, wide), attention_transfer(*pooled))
    term = AttentionTransfer((("s", "t"),))
    value = term(Outputs(None, {"s": tall}), Outputs(None, {"t": wide}), None)
    torch.testing.assert_close(value, 4 / 1024 * attention_transfer(*pooled))  # 2x2 pixels are compared


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1, 2])
def test_gradcheck(p: float, form: Form) -> None:
    teacher = features(2, 3, 2, 2, seed=1)
    student = features(2, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: attention_transfer(a, teacher, p, form), student)


@pytest.mark.parametrize(("form", "factor"), [("code", 16 / 1024), ("paper", 1.0)])  # the first maps have 16 pixels
def test_term_sums_over_pairs(form: Form, factor: float) -> None:
    pairs = (("stage1", "stage2"), ("stage2", "stage4"))
    student = Outputs(None, {"stage1": features(3, 2, 4, 4), "stage2": features(3, 3, 2, 2, seed=1)})
    teacher = Outputs(None, {"stage2": features(3, 4, 4, 4, seed=2), "stage4": features(3, 5, 2, 2, seed=3)})
    term = AttentionTransfer(pairs, form=form)
    assert (term.roles, term.teacher_roles) == (("stage1", "stage2"), ("stage2", "stage4"))
    first, second = (
        reference_losses(student[student_size], teacher[teacher_size], 2, form) for student_size, teacher_size in pairs
    )
    expected = [factor * (a + b) for a, b in zip(first, second, strict=True)]
    assert term(student, teacher, None).tolist() == pytest.approx(expected)


def test_term_applies_power_and_form() -> None:
    student, teacher = features(3, 2, 3, 3), features(3, 2, 3, 3, seed=1)
    term = AttentionTransfer((("s", "t"),), 1, "paper")
    value = term(Outputs(None, {"s": student}), Outputs(None, {"t": teacher}), None)
    assert value.tolist() == pytest.approx(reference_losses(student, teacher, 1, "paper"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("teacher_size", [(4, 4), (8, 6), (2, 3)], ids=["of one size", "larger", "smaller"])
def test_built_term_reads_attention_of_teacher_instead_of_stages(teacher_size: tuple[int, int], form: Form) -> None:
    student = Outputs(None, {"s": features(3, 2, 4, 4).float(), "other": features(3, 2, 2, 2).float()})
    teacher = Outputs(
        None, {"t": features(3, 5, *teacher_size, seed=1).float(), "u": features(3, 3, 2, 2, seed=2).float()}
    )
    term = AttentionTransfer((("s", "t"), ("other", "u")), 2, form)
    unbuilt_value = term(student, teacher, None)
    term.build(student, teacher)
    assert term.teacher_roles == (
        "pooled_attention(t, size=(4, 4), p=2.0)",
        "pooled_attention(u, size=(2, 2), p=2.0)",
    )
    derived_outputs = teacher.select(term.teacher_roles)
    height, width = min(4, teacher_size[0]), min(4, teacher_size[1])
    assert [tuple(value.shape) for value in derived_outputs.features.values()] == [(3, height, width), (3, 2, 2)]
    for item in (term, copy.deepcopy(term), pickle.loads(pickle.dumps(term))):
        assert torch.equal(item(student, derived_outputs, None), unbuilt_value)
    parts = [
        attention_transfer(student[student_size], teacher[teacher_feature], 2, form)
        for student_size, teacher_feature in term.pairs
    ]
    factor = height * width / 1024 if form == "code" else 1
    assert torch.equal(unbuilt_value, torch.stack(parts).sum(0) * factor)


def test_term_cannot_be_rebuilt_for_a_student_of_other_sizes(refused: Any) -> None:
    small, large, teacher = (Outputs(None, {"s": features(3, 2, side, side)}) for side in (2, 4, 8))
    term = AttentionTransfer((("s", "s"),))
    term.build(large, teacher)
    term.build(large, None)
    with refused("built to compare pooled_attention(s, size=(4, 4), p=2.0)", "need", "(2, 2)", "of its own"):
        term.build(small, teacher)


def test_term_without_pairs_is_an_error(refused: Any) -> None:
    with refused("at least one pair of stages", "roles={...}"):
        AttentionTransfer(())


def test_term_equals_authors_loss_at_32_by_32() -> None:
    student, teacher = features(1, 2, 32, 32), features(1, 2, 32, 32, seed=1)
    value = AttentionTransfer((("s", "t"),))(Outputs(None, {"s": student}), Outputs(None, {"t": teacher}), None)
    torch.testing.assert_close(value, attention_transfer(student, teacher))
