"""Features of tokens (B, T, D): attention and hints against plain Python, and what does not fit."""

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


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


OURS, THEIRS = drawn(3, 5, 4), drawn(3, 5, 7)


def by_hand(tokens: Tensor, p: float) -> list[list[float]]:
    maps = []
    for sample in tokens.tolist():
        energy = [sum(abs(x) ** p for x in token) for token in sample]
        length = math.sqrt(sum(e * e for e in energy))
        maps.append([e / length for e in energy])
    return maps


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_attention_of_tokens_is_that_of_plain_loops(p: float) -> None:
    torch.testing.assert_close(attention_map(OURS, p), torch.tensor(by_hand(OURS, p), dtype=torch.float64))
    difference = [
        [a - b for a, b in zip(s, t, strict=True)] for s, t in zip(by_hand(OURS, p), by_hand(THEIRS, p), strict=True)
    ]
    mean = torch.tensor([sum(d * d for d in row) / 5 for row in difference], dtype=torch.float64)
    torch.testing.assert_close(attention_transfer(OURS, THEIRS, p), mean)
    torch.testing.assert_close(attention_transfer(OURS, THEIRS, p, "paper"), (5 * mean).sqrt())


def test_tokens_of_a_grid_and_the_map_of_that_grid_have_one_attention() -> None:
    tokens, taught = drawn(2, 6, 4), drawn(2, 6, 3)
    maps = [value.transpose(1, 2).unflatten(2, (2, 3)) for value in (tokens, taught)]
    torch.testing.assert_close(attention_transfer(tokens, taught), attention_transfer(*maps))
    term = AttentionTransfer((("a", "b"),))
    of_tokens = term(Outputs(None, {"a": tokens}), Outputs(None, {"b": taught}))
    torch.testing.assert_close(of_tokens, term(Outputs(None, {"a": maps[0]}), Outputs(None, {"b": maps[1]})))
    torch.testing.assert_close(of_tokens, attention_transfer(tokens, taught) * 6 / 1024)


def test_the_class_token_counts_and_what_is_zero_does_not() -> None:
    without = attention_transfer(OURS[:, 1:], THEIRS[:, 1:], form="paper")
    assert not torch.isclose(attention_transfer(OURS, THEIRS, form="paper"), without).any()
    mask = torch.tensor([0.0, 1, 1, 1, 1])[:, None]
    torch.testing.assert_close(attention_transfer(OURS * mask, THEIRS * mask, form="paper"), without)


def test_the_term_asks_a_teacher_of_tokens_for_its_attention() -> None:
    student, teacher = Outputs(None, {"stage1": OURS}), Outputs(None, {"stage1": THEIRS})
    term = AttentionTransfer((("stage1", "stage1"),))
    expected = term(student, teacher)
    term.build(student, teacher)
    assert [str(role) for role in term.teacher_roles] == ["pooled_attention(stage1, size=(5,), p=2.0)"]
    assert torch.equal(term(student, teacher.select(term.teacher_roles)), expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((3, 5, 4), (3, 6, 4)), ((3, 5, 4), (3, 4, 5, 5)), ((3, 4, 5, 5), (3, 25, 4)), ((3, 4), (3, 4, 5, 5))],
)
def test_attention_of_other_shapes_is_refused(ours: tuple[int, ...], theirs: tuple[int, ...], refused: Any) -> None:
    shapes = ["(3, 4)"] if len(ours) == 2 else [str(theirs), f"(B, {ours[1]}, D)" if len(ours) == 3 else "(B, C, 5, 5)"]
    with refused(*shapes):
        attention_transfer(drawn(*ours), drawn(*theirs))


@pytest.mark.parametrize("reduction", ["paper", "mean", "relative"])
def test_a_hint_of_tokens_is_one_linear_map_for_each(reduction: Any) -> None:
    term = Hint("a", "b", reduction)
    term.build(OURS, THEIRS)
    assert isinstance(term.regressor, torch.nn.Linear)
    weight, bias = term.regressor.weight, term.regressor.bias
    guided = torch.stack([torch.stack([weight @ token + bias for token in sample]) for sample in OURS])
    expected = 0.5 * (guided - THEIRS).square().sum((1, 2))
    torch.testing.assert_close(hint_loss(guided, THEIRS), expected)
    if reduction != "paper":
        expected = expected * 2 / 35 / (THEIRS.square().mean() if reduction == "relative" else 1)
    torch.testing.assert_close(term(Outputs(None, {"a": OURS}), Outputs(None, {"b": THEIRS})), expected)
    always = Hint("a", "a", use_regressor="always")
    always.build(OURS, OURS)
    assert sum(parameter.numel() for parameter in always.parameters()) == 4 * 4 + 4


@pytest.mark.parametrize(
    ("ours", "theirs"), [((5, 4), (6, 4)), ((5, 4), (4, 5, 5)), ((4,), (5, 4)), ((5, 4), (4,)), ((2, 5, 4, 3), (5, 4))]
)
def test_a_hint_of_other_shapes_is_refused(ours: tuple[int, ...], theirs: tuple[int, ...], refused: Any) -> None:
    with refused(f"the student's {ours}", f"the teacher's {theirs}", "name other layers"):
        regressor(ours, theirs)


def test_similarities_take_tokens_as_they_are() -> None:
    assert torch.equal(
        SimilarityPreserving("a", "a")(OURS, THEIRS) * 64 / 3, similarity_preserving(OURS.flatten(1), THEIRS)
    )


def test_gradients_reach_the_student_alone() -> None:
    ours, theirs = OURS.clone().requires_grad_(), THEIRS.clone().requires_grad_()
    attention_transfer(ours, theirs).sum().backward()
    assert theirs.grad is None
    assert torch.autograd.gradcheck(lambda x: attention_transfer(x, THEIRS), (ours,))
    same = OURS.clone().requires_grad_()
    value = attention_transfer(same, OURS)
    value.sum().backward()
    assert value.abs().max() == 0
