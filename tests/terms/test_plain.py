"""Terms of plain tensors, for a custom training loop: samples, tokens and maps."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Split
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import cross_entropy, soft_targets
from tutelage.methods.mslg.labels import LearnedLabels
from tutelage.models.outputs import Outputs, class_axis
from tutelage.terms import (
    AttentionTransfer,
    CrossEntropy,
    DistanceRelations,
    Flow,
    Hint,
    Mimicry,
    SimilarityPreserving,
    SoftmaxMSE,
    SoftTargets,
)
from tutelage.terms.entropy import Entropy

GENERATOR = torch.Generator().manual_seed(5)


def random_tensor(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def of_maps(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, T, C) as (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous()


SAMPLES, TEACHER_SAMPLES, LABELS = random_tensor(6, 5), random_tensor(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
TOKENS, TEACHER_TOKENS = random_tensor(3, 6, 5), random_tensor(3, 6, 5)
TOKEN_LABELS = torch.randint(5, (3, 6), generator=GENERATOR)
TOKEN_LABELS[0, 2:], TOKEN_LABELS[1, 5] = -100, -100


# --- arguments


def test_tensors_give_mean_over_samples() -> None:
    value = SoftTargets(4.0)(SAMPLES, TEACHER_SAMPLES)
    assert value.shape == ()
    torch.testing.assert_close(value, soft_targets(SAMPLES, TEACHER_SAMPLES, 4.0).mean())
    torch.testing.assert_close(SoftTargets(4.0)(Outputs(SAMPLES), TEACHER_SAMPLES), value)
    torch.testing.assert_close(SoftTargets(4.0)({"logits": SAMPLES}, {"logits": TEACHER_SAMPLES}), value)
    torch.testing.assert_close(SoftTargets(4.0)(SimpleNamespace(logits=SAMPLES), TEACHER_SAMPLES), value)
    assert SoftTargets(4.0)(Outputs(SAMPLES), Outputs(TEACHER_SAMPLES)).shape == (6,)


def test_labels_are_second_or_third_argument() -> None:
    expected = F.cross_entropy(SAMPLES, LABELS)
    for value in (
        CrossEntropy()(SAMPLES, LABELS),
        CrossEntropy()(SAMPLES, None, LABELS),
        CrossEntropy()(SAMPLES, TEACHER_SAMPLES, LABELS),
        CrossEntropy()(SAMPLES, batch=LABELS),
        CrossEntropy()(SAMPLES, batch=Batch(SAMPLES, LABELS, LABELS, None)),
    ):
        torch.testing.assert_close(value, expected)
    assert Entropy()(SAMPLES).shape == ()


def test_tensor_is_accepted_for_a_single_role() -> None:
    expected = SimilarityPreserving("stage1", "stage2")(
        Outputs(None, {"stage1": SAMPLES}), Outputs(None, {"stage2": TEACHER_SAMPLES}), None
    )
    for student, teacher in (
        (SAMPLES, TEACHER_SAMPLES),
        ({"stage1": SAMPLES}, {"stage2": TEACHER_SAMPLES, "more": LABELS}),
    ):
        assert torch.equal(SimilarityPreserving("stage1", "stage2")(student, teacher), expected)
    assert DistanceRelations()(SAMPLES, TEACHER_SAMPLES).shape == ()


def test_several_roles_need_a_mapping(refused: Any) -> None:
    pairs = (("stage1", "stage1"), ("stage2", "stage3"))
    maps, smaller = [random_tensor(3, 2, 4, 4) for _ in range(2)], [random_tensor(3, 3, 2, 2) for _ in range(2)]
    student, teacher = {"stage1": maps[0], "stage2": smaller[0]}, {"stage1": maps[1], "stage3": smaller[1]}
    term = AttentionTransfer(pairs)
    expected = term(Outputs(None, student), Outputs(None, teacher)).mean()
    assert torch.equal(term(student, teacher), expected)
    term.build(Outputs(None, student), Outputs(None, teacher))  # reads the teacher's attention from now on
    assert torch.equal(term(student, teacher), expected)
    with refused("AttentionTransfer", "the student", "stage1, stage2", "(3, 2, 4, 4)", "{'stage1': tensor, 'stage2'"):
        term(maps[0], teacher)
    with refused("the teacher", "stage1, stage3", "(3, 2, 4, 4)"):
        term(student, maps[1])
    with refused("no 'stage2'", "they hold stage1"):
        term({"stage1": maps[0]}, teacher)
    single = AttentionTransfer(pairs[:1])
    single.build(Outputs(None, student), Outputs(None, teacher))
    assert torch.equal(single(maps[0], maps[1]), single(student, teacher))


def test_missing_arguments_are_named(refused: Any) -> None:
    with refused("CrossEntropy needs labels"):
        CrossEntropy()(SAMPLES)
    with refused("SoftTargets needs the teacher's outputs"):
        SoftTargets()(SAMPLES)
    with refused("SoftTargets", "the student", "tuple of (6, 5), (6, 5)", "the tensor itself"):
        SoftTargets()((SAMPLES, TEACHER_SAMPLES), TEACHER_SAMPLES)  # type: ignore[arg-type]
    with refused("CrossEntropy takes a Batch or a tensor of labels", "list"):
        CrossEntropy()(SAMPLES, None, [1, 2])  # type: ignore[arg-type]
    with refused("(6, 5)", "(6, 4)", "the same samples and classes"):
        SoftTargets()(SAMPLES, TEACHER_SAMPLES[:, :4])


def test_learned_labels_need_sample_numbers() -> None:
    with pytest.raises(IndexError):
        LearnedLabels(Split.of(torch.zeros(6, 8, 8, 1), LABELS), torch.zeros(6, 5))(SAMPLES.float(), LABELS)


def test_projection_must_be_built_first() -> None:
    term, (student, teacher) = Hint("stage1", "stage1", "mean"), (random_tensor(3, 2, 4, 4), random_tensor(3, 5, 4, 4))
    with pytest.raises(TutelageError, match=r"Hint needs .* build\(student, teacher\) .* create the optimizer"):
        term(student, teacher)
    term.build(student, teacher)
    assert len(list(term.parameters())) == 2
    assert term(student, teacher).shape == ()
    flow, layers = Flow((("stem", "stem"), ("stage1", "stage1"))), {"stem": student, "stage1": student}
    with pytest.raises(TutelageError, match=r"Flow needs .* build\(student, teacher\) .* create the optimizer"):
        flow(layers, {"stem": teacher, "stage1": teacher})
    flow.build(layers, {"stem": teacher, "stage1": teacher})
    assert flow(layers, {"stem": teacher, "stage1": teacher}).shape == ()


# --- the class axis


@pytest.mark.parametrize(
    ("shape", "axis", "position"),
    [
        ((6, 5), None, 1), ((3, 6, 5), None, 2), ((3, 5, 2, 2), None, 1), ((3, 5, 2, 2, 2), None, 1),
        ((3, 5, 6), 1, 1), ((3, 2, 2, 5), -1, 3), ((3, 2, 2, 5), 3, 3), ((6, 5), 3, 1),
    ],
)  # fmt: skip
def test_class_axis_rule(shape: tuple[int, ...], axis: int | None, position: int) -> None:
    assert class_axis(torch.zeros(shape), axis) % len(shape) == position


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 6, 5), 0), ((3, 6, 5), 3), ((3, 6, 5), -3), ((3, 6, 5), -4), ((5,), None)]
)
def test_invalid_class_axis_is_refused(shape: tuple[int, ...], axis: int | None, refused: Any) -> None:
    with refused(str(shape)):
        class_axis(torch.zeros(shape), axis)


def softmax_at(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def reference_values(temperature: float) -> list[list[float]]:
    """T^2 KL at each token of TOKENS and TEACHER, in plain Python."""
    return [
        [
            temperature**2
            * sum(
                q * math.log(q / p)
                for p, q in zip(softmax_at(z.tolist(), temperature), softmax_at(v.tolist(), temperature), strict=True)
            )
            for z, v in zip(tokens, teacher_tokens, strict=True)
        ]
        for tokens, teacher_tokens in zip(TOKENS, TEACHER_TOKENS, strict=True)
    ]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("form", ["tokens", "torch's order", "maps", "maps, classes last", "maps, classes fourth"])
def test_soft_targets_of_tokens_and_maps(form: str, temperature: float) -> None:
    change, axis = {
        "tokens": (lambda x: x, None),
        "torch's order": (lambda x: x.transpose(1, 2), 1),
        "maps": (lambda x: of_maps(x, 2, 3), None),
        "maps, classes last": (lambda x: x.unflatten(1, (2, 3)), -1),
        "maps, classes fourth": (lambda x: x.unflatten(1, (2, 3)), 3),
    }[form]
    student, teacher = change(TOKENS), change(TEACHER_TOKENS)
    values = torch.tensor(reference_values(temperature), dtype=torch.float64)
    torch.testing.assert_close(soft_targets(student, teacher, temperature, axis=axis), values.mean(1))
    term = SoftTargets(temperature, axis=axis)
    torch.testing.assert_close(term(Outputs(student), Outputs(teacher)), values.mean(1))
    torch.testing.assert_close(term(student, teacher), values.mean())
    token_labels = TOKEN_LABELS if student.ndim == 3 else TOKEN_LABELS.unflatten(1, (2, 3))
    masked_values = values.where(TOKEN_LABELS != -100, 0.0)
    mean = masked_values.sum() / (TOKEN_LABELS != -100).sum()
    torch.testing.assert_close(SoftTargets(temperature, -100, axis)(student, teacher, token_labels), mean)
    in_samples = masked_values.sum(1) / (TOKEN_LABELS != -100).sum(1)
    torch.testing.assert_close(
        soft_targets(student, teacher, temperature, mask=token_labels != -100, axis=axis), in_samples
    )
    batch = Batch(student, token_labels, torch.arange(3), None)
    torch.testing.assert_close(
        SoftTargets(temperature, -100, axis)(Outputs(student), Outputs(teacher), batch), in_samples
    )


@pytest.mark.parametrize("ignore_index", [-100, -1, 255])
def test_cross_entropy_of_tokens_and_maps_equals_torch(ignore_index: int) -> None:
    token_labels = TOKEN_LABELS.masked_fill(TOKEN_LABELS == -100, ignore_index)
    expected = F.cross_entropy(TOKENS.transpose(1, 2), token_labels, ignore_index=ignore_index)
    term = CrossEntropy(ignore_index)
    for value in (
        term(TOKENS, token_labels),
        CrossEntropy(ignore_index, axis=1)(TOKENS.transpose(1, 2), token_labels),
        CrossEntropy(ignore_index, axis=2)(TOKENS, token_labels),
        term(of_maps(TOKENS, 2, 3), token_labels.unflatten(1, (2, 3))),
    ):
        torch.testing.assert_close(value, expected)
    values = F.cross_entropy(TOKENS.transpose(1, 2), token_labels, ignore_index=ignore_index, reduction="none")
    mean = values.sum(1) / (token_labels != ignore_index).sum(1)
    torch.testing.assert_close(cross_entropy(TOKENS, token_labels, ignore_index=ignore_index), mean)
    maps = Outputs(of_maps(TOKENS, 2, 3)), None, Batch(TOKENS, token_labels.unflatten(1, (2, 3)), torch.arange(3), None)
    torch.testing.assert_close(term(*maps), mean)


def test_soft_labels_of_maps_equal_torch() -> None:
    maps = of_maps(TOKENS, 2, 3)
    soft = of_maps(TEACHER_TOKENS, 2, 3).softmax(1)
    torch.testing.assert_close(CrossEntropy()(maps, soft), F.cross_entropy(maps, soft))
    torch.testing.assert_close(
        cross_entropy(TOKENS, TEACHER_TOKENS.softmax(-1)),
        F.cross_entropy(maps, soft, reduction="none").flatten(1).mean(1),
    )


def test_masked_positions_do_not_count() -> None:
    """They are not in the mean nor in the gradient; if none counts, both are 0."""
    labels = torch.tensor([0, -100, 2, -1, 1, 3])
    is_labelled = labels >= 0
    torch.testing.assert_close(
        CrossEntropy()(SAMPLES, labels), F.cross_entropy(SAMPLES[is_labelled], labels[is_labelled])
    )
    logits = SAMPLES.clone().requires_grad_()
    loss = SoftTargets(4.0, -100)(logits, TEACHER_SAMPLES, labels)
    torch.testing.assert_close(loss, soft_targets(SAMPLES, TEACHER_SAMPLES)[labels != -100].mean())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.any(1).tolist() == (labels != -100).tolist()
    for term in (CrossEntropy(), SoftTargets(4.0, -100)):
        assert term(SAMPLES, TEACHER_SAMPLES, torch.full((6,), -100)).item() == 0


def test_terms_of_logits_accept_tokens_and_maps() -> None:
    for term in (Mimicry(2.0), SoftmaxMSE(), Entropy()):
        expected = term(TOKENS.flatten(0, 1), TEACHER_TOKENS.flatten(0, 1))
        torch.testing.assert_close(term(TOKENS, TEACHER_TOKENS), expected)
        torch.testing.assert_close(term(of_maps(TOKENS, 2, 3), of_maps(TEACHER_TOKENS, 2, 3)), expected)


def test_probabilities_of_teachers_of_maps_are_averaged() -> None:
    teachers = [of_maps(value, 2, 3) for value in (TEACHER_TOKENS, TOKENS.flip(0))]
    ensemble = Outputs.ensemble(tuple(map(Outputs, teachers)))
    rows = Outputs.ensemble(tuple(Outputs(t.movedim(1, -1).flatten(0, -2)) for t in teachers))
    expected = SoftTargets(2.0)(Outputs(TOKENS.flatten(0, 1)), rows).mean()
    torch.testing.assert_close(SoftTargets(2.0)(of_maps(TOKENS, 2, 3), ensemble), expected)
    torch.testing.assert_close(ensemble["logits"].exp().sum(1), torch.ones(3, 2, 3).double())


def test_mismatched_shapes_are_refused(refused: Any) -> None:
    with refused("(3, 6, 5)", "(3, 6)", "got shape (3, 5)", "axis=1"):
        cross_entropy(TOKENS, torch.zeros(3, 5, dtype=torch.int64))
    with refused("(3, 6, 5)", "(3, 6)", "got shape (3, 5)", "axis=1"):
        CrossEntropy()(TOKENS, torch.zeros(3, 5, dtype=torch.int64))
    with refused("(3, 5, 2, 3)", "(3, 2, 3)", "got shape (3,)"):
        CrossEntropy()(of_maps(TOKENS, 2, 3), torch.zeros(3, dtype=torch.int64))
    with refused("(3, 6, 5)", "(3, 7, 5)", "positions"):
        SoftTargets()(TOKENS, random_tensor(3, 7, 5))
    with refused("must be (3, 6)", "got shape (3,)"):
        soft_targets(TOKENS, TEACHER_TOKENS, mask=torch.ones(3, dtype=torch.bool))


def test_autocast_does_not_affect_plain_tensors() -> None:
    expected = SoftTargets()(SAMPLES.float(), TEACHER_SAMPLES.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SoftTargets()(SAMPLES.float(), TEACHER_SAMPLES.float()), expected)


def test_gradients_reach_student_only() -> None:
    student, teacher = TOKENS.clone().requires_grad_(), TEACHER_TOKENS.clone().requires_grad_()
    SoftTargets(4.0, -100)(student, teacher, TOKEN_LABELS).backward()
    assert student.grad is not None
    assert student.grad.any(-1).tolist() == (TOKEN_LABELS != -100).tolist()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda z: CrossEntropy()(z, TOKEN_LABELS), (TOKENS.clone().requires_grad_(),))
