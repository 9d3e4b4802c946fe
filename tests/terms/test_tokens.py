"""Features of tokens (B, T, D): attention and hints compared with plain Python, and mismatched shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.losses import attention_map, attention_transfer, hint_loss, regressor, similarity_preserving
from tutelage.models.outputs import Outputs
from tutelage.terms import AttentionTransfer, Hint, SimilarityPreserving

GENERATOR = torch.Generator().manual_seed(2)


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


STUDENT, TEACHER = random_tensor(3, 5, 4), random_tensor(3, 5, 7)


def reference_attention(tokens: Tensor, p: float) -> list[list[float]]:
    maps = []
    for sample in tokens.tolist():
        energy = [sum(abs(x) ** p for x in token) for token in sample]
        length = math.sqrt(sum(e * e for e in energy))
        maps.append([e / length for e in energy])
    return maps


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_attention_of_tokens_equals_plain_loops(p: float) -> None:
    torch.testing.assert_close(
        attention_map(STUDENT, p), torch.tensor(reference_attention(STUDENT, p), dtype=torch.float64)
    )
    difference = [
        [a - b for a, b in zip(s, t, strict=True)]
        for s, t in zip(reference_attention(STUDENT, p), reference_attention(TEACHER, p), strict=True)
    ]
    mean = torch.tensor([sum(d * d for d in row) / 5 for row in difference], dtype=torch.float64)
    torch.testing.assert_close(attention_transfer(STUDENT, TEACHER, p), mean)
    torch.testing.assert_close(attention_transfer(STUDENT, TEACHER, p, "paper"), (5 * mean).sqrt())


def test_tokens_of_a_grid_and_its_map_have_equal_attention() -> None:
    tokens, teacher_tokens = random_tensor(2, 6, 4), random_tensor(2, 6, 3)
    maps = [value.transpose(1, 2).unflatten(2, (2, 3)) for value in (tokens, teacher_tokens)]
    torch.testing.assert_close(attention_transfer(tokens, teacher_tokens), attention_transfer(*maps))
    term = AttentionTransfer((("a", "b"),))
    of_tokens = term(Outputs(None, {"a": tokens}), Outputs(None, {"b": teacher_tokens}))
    torch.testing.assert_close(of_tokens, term(Outputs(None, {"a": maps[0]}), Outputs(None, {"b": maps[1]})))
    torch.testing.assert_close(of_tokens, attention_transfer(tokens, teacher_tokens) * 6 / 1024)


def test_class_token_counts_and_zero_tokens_do_not() -> None:
    without_class_token = attention_transfer(STUDENT[:, 1:], TEACHER[:, 1:], form="paper")
    assert not torch.isclose(attention_transfer(STUDENT, TEACHER, form="paper"), without_class_token).any()
    mask = torch.tensor([0.0, 1, 1, 1, 1])[:, None]
    torch.testing.assert_close(attention_transfer(STUDENT * mask, TEACHER * mask, form="paper"), without_class_token)


def test_built_term_reads_attention_of_token_teacher() -> None:
    student, teacher = Outputs(None, {"stage1": STUDENT}), Outputs(None, {"stage1": TEACHER})
    term = AttentionTransfer((("stage1", "stage1"),))
    expected = term(student, teacher)
    term.build(student, teacher)
    assert [str(role) for role in term.teacher_roles] == ["pooled_attention(stage1, size=(5,), p=2.0)"]
    assert torch.equal(term(student, teacher.select(term.teacher_roles)), expected)


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((3, 5, 4), (3, 6, 4)), ((3, 5, 4), (3, 4, 5, 5)), ((3, 4, 5, 5), (3, 25, 4)), ((3, 4), (3, 4, 5, 5))],
)
def test_attention_of_mismatched_shapes_is_refused(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], refused: Any
) -> None:
    shapes = (
        ["(3, 4)"]
        if len(student_shape) == 2
        else [str(teacher_shape), f"(B, {student_shape[1]}, D)" if len(student_shape) == 3 else "(B, C, 5, 5)"]
    )
    with refused(*shapes):
        attention_transfer(random_tensor(*student_shape), random_tensor(*teacher_shape))


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
def test_hint_of_tokens_is_a_shared_linear_layer(reduction: Any) -> None:
    term = Hint("a", "b", reduction)
    term.build(STUDENT, TEACHER)
    assert isinstance(term.regressor, torch.nn.Linear)
    weight, bias = term.regressor.weight, term.regressor.bias
    mapped_tokens = torch.stack([torch.stack([weight @ token + bias for token in sample]) for sample in STUDENT])
    expected = 0.5 * (mapped_tokens - TEACHER).square().sum((1, 2))
    torch.testing.assert_close(hint_loss(mapped_tokens, TEACHER), expected)
    if reduction != "paper":
        expected = expected * 2 / 35 / (TEACHER.square().mean() if reduction == "relative" else 1)
    torch.testing.assert_close(term(Outputs(None, {"a": STUDENT}), Outputs(None, {"b": TEACHER})), expected)
    always = Hint("a", "a", use_regressor="always")
    always.build(STUDENT, STUDENT)
    assert sum(parameter.numel() for parameter in always.parameters()) == 4 * 4 + 4


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((5, 4), (6, 4)), ((5, 4), (4, 5, 5)), ((4,), (5, 4)), ((5, 4), (4,)), ((2, 5, 4, 3), (5, 4))],
)
def test_hint_of_mismatched_shapes_is_refused(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], refused: Any
) -> None:
    with refused(f"the student's {student_shape}", f"the teacher's {teacher_shape}", "name other layers"):
        regressor(student_shape, teacher_shape)


def test_similarity_losses_accept_tokens() -> None:
    assert torch.equal(
        SimilarityPreserving("a", "a")(STUDENT, TEACHER) * 64 / 3, similarity_preserving(STUDENT.flatten(1), TEACHER)
    )


def test_gradients_reach_student_only() -> None:
    student_shape, teacher_shape = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    attention_transfer(student_shape, teacher_shape).sum().backward()
    assert teacher_shape.grad is None
    assert torch.autograd.gradcheck(lambda x: attention_transfer(x, TEACHER), (student_shape,))
    equal = STUDENT.clone().requires_grad_()
    value = attention_transfer(equal, STUDENT)
    value.sum().backward()
    assert value.abs().max() == 0
