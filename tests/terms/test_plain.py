"""Terms on plain tensors: a loss for a loop of one's own, of samples, tokens and maps."""

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
from tutelage.losses import cross_entropy, soft_targets
from tutelage.methods.mslg.labels import Entropy, LearnedLabels
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

GENERATOR = torch.Generator().manual_seed(5)


def drawn(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def of_maps(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, T, C) as (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous()


SAMPLES, OTHERS, LABELS = drawn(6, 5), drawn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
TOKENS, TAUGHT = drawn(3, 6, 5), drawn(3, 6, 5)
PLACES = torch.randint(5, (3, 6), generator=GENERATOR)
PLACES[0, 2:], PLACES[1, 5] = -100, -100


# --- what it is called with


def test_two_tensors_give_the_mean_of_the_values_per_sample() -> None:
    value = SoftTargets(4.0)(SAMPLES, OTHERS)
    assert value.shape == ()
    torch.testing.assert_close(value, soft_targets(SAMPLES, OTHERS, 4.0).mean())
    torch.testing.assert_close(SoftTargets(4.0)(Outputs(SAMPLES), OTHERS), value)
    torch.testing.assert_close(SoftTargets(4.0)({"logits": SAMPLES}, {"logits": OTHERS}), value)
    torch.testing.assert_close(SoftTargets(4.0)(SimpleNamespace(logits=SAMPLES), OTHERS), value)
    assert SoftTargets(4.0)(Outputs(SAMPLES), Outputs(OTHERS)).shape == (6,)


def test_labels_come_second_for_a_term_without_a_teacher_and_third_for_all() -> None:
    expected = F.cross_entropy(SAMPLES, LABELS)
    for value in (
        CrossEntropy()(SAMPLES, LABELS),
        CrossEntropy()(SAMPLES, None, LABELS),
        CrossEntropy()(SAMPLES, OTHERS, LABELS),
        CrossEntropy()(SAMPLES, batch=LABELS),
        CrossEntropy()(SAMPLES, batch=Batch(SAMPLES, LABELS, LABELS, None)),
    ):
        torch.testing.assert_close(value, expected)
    assert Entropy()(SAMPLES).shape == ()


def test_a_tensor_stands_for_the_one_role_that_is_read() -> None:
    expected = SimilarityPreserving("stage1", "stage2")(
        Outputs(None, {"stage1": SAMPLES}), Outputs(None, {"stage2": OTHERS}), None
    )
    for student, teacher in ((SAMPLES, OTHERS), ({"stage1": SAMPLES}, {"stage2": OTHERS, "more": LABELS})):
        assert torch.equal(SimilarityPreserving("stage1", "stage2")(student, teacher), expected)
    assert DistanceRelations()(SAMPLES, OTHERS).shape == ()


def test_several_roles_are_a_mapping(refused: Any) -> None:
    pairs = (("stage1", "stage1"), ("stage2", "stage3"))
    maps, more = [drawn(3, 2, 4, 4) for _ in range(2)], [drawn(3, 3, 2, 2) for _ in range(2)]
    ours, theirs = {"stage1": maps[0], "stage2": more[0]}, {"stage1": maps[1], "stage3": more[1]}
    term = AttentionTransfer(pairs)
    expected = term(Outputs(None, ours), Outputs(None, theirs)).mean()
    assert torch.equal(term(ours, theirs), expected)
    term.build(Outputs(None, ours), Outputs(None, theirs))  # asks the teacher for its attention from now on
    assert torch.equal(term(ours, theirs), expected)
    with refused("AttentionTransfer", "the student", "stage1, stage2", "(3, 2, 4, 4)", "{'stage1': tensor, 'stage2'"):
        term(maps[0], theirs)
    with refused("the teacher", "stage1, stage3", "(3, 2, 4, 4)"):
        term(ours, maps[1])
    with refused("no 'stage2'", "they hold stage1"):
        term({"stage1": maps[0]}, theirs)
    single = AttentionTransfer(pairs[:1])
    single.build(Outputs(None, ours), Outputs(None, theirs))
    assert torch.equal(single(maps[0], maps[1]), single(ours, theirs))


def test_what_is_missing_is_said(refused: Any) -> None:
    with refused("CrossEntropy needs labels"):
        CrossEntropy()(SAMPLES)
    with refused("SoftTargets needs the teacher's outputs"):
        SoftTargets()(SAMPLES)
    with refused("SoftTargets", "the student", "tuple of (6, 5), (6, 5)", "the tensor itself"):
        SoftTargets()((SAMPLES, OTHERS), OTHERS)  # type: ignore[arg-type]
    with refused("CrossEntropy takes a Batch or a tensor of labels", "list"):
        CrossEntropy()(SAMPLES, None, [1, 2])  # type: ignore[arg-type]
    with refused("(6, 5)", "(6, 4)", "the same samples and classes"):
        SoftTargets()(SAMPLES, OTHERS[:, :4])


def test_labels_kept_by_the_number_of_a_sample_cannot_be_found_without_one() -> None:
    with pytest.raises(IndexError):
        LearnedLabels(Split.of(torch.zeros(6, 8, 8, 1), LABELS), torch.zeros(6, 5))(SAMPLES.float(), LABELS)


def test_a_projection_is_built_before_it_is_used() -> None:
    term, (ours, theirs) = Hint("stage1", "stage1", "mean"), (drawn(3, 2, 4, 4), drawn(3, 5, 4, 4))
    with pytest.raises(ValueError, match=r"Hint needs .* build\(student, teacher\) .* before the optimiser"):
        term(ours, theirs)
    term.build(ours, theirs)
    assert len(list(term.parameters())) == 2
    assert term(ours, theirs).shape == ()
    flow, layers = Flow((("stem", "stem"), ("stage1", "stage1"))), {"stem": ours, "stage1": ours}
    with pytest.raises(ValueError, match=r"Flow needs .* build\(student, teacher\) .* before the optimiser"):
        flow(layers, {"stem": theirs, "stage1": theirs})
    flow.build(layers, {"stem": theirs, "stage1": theirs})
    assert flow(layers, {"stem": theirs, "stage1": theirs}).shape == ()


# --- the class axis


@pytest.mark.parametrize(
    ("shape", "axis", "place"),
    [
        ((6, 5), None, 1), ((3, 6, 5), None, 2), ((3, 5, 2, 2), None, 1), ((3, 5, 2, 2, 2), None, 1),
        ((3, 5, 6), 1, 1), ((3, 2, 2, 5), -1, 3), ((3, 2, 2, 5), 3, 3), ((6, 5), 3, 1),
    ],
)  # fmt: skip
def test_the_rule_of_the_class_axis(shape: tuple[int, ...], axis: int | None, place: int) -> None:
    assert class_axis(torch.zeros(shape), axis) % len(shape) == place


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 6, 5), 0), ((3, 6, 5), 3), ((3, 6, 5), -3), ((3, 6, 5), -4), ((5,), None)]
)
def test_no_class_axis(shape: tuple[int, ...], axis: int | None, refused: Any) -> None:
    with refused(str(shape)):
        class_axis(torch.zeros(shape), axis)


def softened(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def by_hand(temperature: float) -> list[list[float]]:
    """T^2 KL at each token of TOKENS and TAUGHT, in plain Python."""
    return [
        [
            temperature**2
            * sum(
                q * math.log(q / p)
                for p, q in zip(softened(z.tolist(), temperature), softened(v.tolist(), temperature), strict=True)
            )
            for z, v in zip(tokens, taught, strict=True)
        ]
        for tokens, taught in zip(TOKENS, TAUGHT, strict=True)
    ]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("form", ["tokens", "torch's order", "maps", "maps, classes last", "maps, classes fourth"])
def test_soft_targets_of_tokens_and_maps_are_those_of_their_places(form: str, temperature: float) -> None:
    change, axis = {
        "tokens": (lambda x: x, None),
        "torch's order": (lambda x: x.transpose(1, 2), 1),
        "maps": (lambda x: of_maps(x, 2, 3), None),
        "maps, classes last": (lambda x: x.unflatten(1, (2, 3)), -1),
        "maps, classes fourth": (lambda x: x.unflatten(1, (2, 3)), 3),
    }[form]
    student, teacher = change(TOKENS), change(TAUGHT)
    each = torch.tensor(by_hand(temperature), dtype=torch.float64)
    torch.testing.assert_close(soft_targets(student, teacher, temperature, axis=axis), each.mean(1))
    term = SoftTargets(temperature, axis=axis)
    torch.testing.assert_close(term(Outputs(student), Outputs(teacher)), each.mean(1))
    torch.testing.assert_close(term(student, teacher), each.mean())
    places = PLACES if student.ndim == 3 else PLACES.unflatten(1, (2, 3))
    masked = each.where(PLACES != -100, 0.0)
    mean = masked.sum() / (PLACES != -100).sum()
    torch.testing.assert_close(SoftTargets(temperature, -100, axis)(student, teacher, places), mean)
    in_samples = masked.sum(1) / (PLACES != -100).sum(1)
    torch.testing.assert_close(soft_targets(student, teacher, temperature, mask=places != -100, axis=axis), in_samples)
    batch = Batch(student, places, torch.arange(3), None)
    torch.testing.assert_close(
        SoftTargets(temperature, -100, axis)(Outputs(student), Outputs(teacher), batch), in_samples
    )


@pytest.mark.parametrize("ignored", [-100, -1, 255])
def test_cross_entropy_of_tokens_and_maps_is_torchs(ignored: int) -> None:
    places = PLACES.masked_fill(PLACES == -100, ignored)
    expected = F.cross_entropy(TOKENS.transpose(1, 2), places, ignore_index=ignored)
    term = CrossEntropy(ignored)
    for value in (
        term(TOKENS, places),
        CrossEntropy(ignored, axis=1)(TOKENS.transpose(1, 2), places),
        CrossEntropy(ignored, axis=2)(TOKENS, places),
        term(of_maps(TOKENS, 2, 3), places.unflatten(1, (2, 3))),
    ):
        torch.testing.assert_close(value, expected)
    each = F.cross_entropy(TOKENS.transpose(1, 2), places, ignore_index=ignored, reduction="none")
    mean = each.sum(1) / (places != ignored).sum(1)
    torch.testing.assert_close(cross_entropy(TOKENS, places, ignore_index=ignored), mean)
    maps = Outputs(of_maps(TOKENS, 2, 3)), None, Batch(TOKENS, places.unflatten(1, (2, 3)), torch.arange(3), None)
    torch.testing.assert_close(term(*maps), mean)


def test_soft_labels_of_maps_are_torchs() -> None:
    maps = of_maps(TOKENS, 2, 3)
    soft = of_maps(TAUGHT, 2, 3).softmax(1)
    torch.testing.assert_close(CrossEntropy()(maps, soft), F.cross_entropy(maps, soft))
    torch.testing.assert_close(
        cross_entropy(TOKENS, TAUGHT.softmax(-1)), F.cross_entropy(maps, soft, reduction="none").flatten(1).mean(1)
    )


def test_what_does_not_count_does_not_count() -> None:
    """Neither in the mean nor in the gradient; where nothing counts both are 0."""
    labels = torch.tensor([0, -100, 2, -1, 1, 3])
    known = labels >= 0
    torch.testing.assert_close(CrossEntropy()(SAMPLES, labels), F.cross_entropy(SAMPLES[known], labels[known]))
    logits = SAMPLES.clone().requires_grad_()
    loss = SoftTargets(4.0, -100)(logits, OTHERS, labels)
    torch.testing.assert_close(loss, soft_targets(SAMPLES, OTHERS)[labels != -100].mean())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.any(1).tolist() == (labels != -100).tolist()
    for term in (CrossEntropy(), SoftTargets(4.0, -100)):
        assert term(SAMPLES, OTHERS, torch.full((6,), -100)).item() == 0


def test_every_term_on_logits_takes_tokens_and_maps() -> None:
    for term in (Mimicry(2.0), SoftmaxMSE(), Entropy()):
        expected = term(TOKENS.flatten(0, 1), TAUGHT.flatten(0, 1))
        torch.testing.assert_close(term(TOKENS, TAUGHT), expected)
        torch.testing.assert_close(term(of_maps(TOKENS, 2, 3), of_maps(TAUGHT, 2, 3)), expected)


def test_several_teachers_of_maps_are_averaged_as_probabilities() -> None:
    teachers = [of_maps(value, 2, 3) for value in (TAUGHT, TOKENS.flip(0))]
    ensemble = Outputs.ensemble(tuple(map(Outputs, teachers)))
    rows = Outputs.ensemble(tuple(Outputs(t.movedim(1, -1).flatten(0, -2)) for t in teachers))
    expected = SoftTargets(2.0)(Outputs(TOKENS.flatten(0, 1)), rows).mean()
    torch.testing.assert_close(SoftTargets(2.0)(of_maps(TOKENS, 2, 3), ensemble), expected)
    torch.testing.assert_close(ensemble["logits"].exp().sum(1), torch.ones(3, 2, 3).double())


def test_shapes_that_do_not_fit_are_refused(refused: Any) -> None:
    with refused("(3, 6, 5)", "(3, 6)", "got shape (3, 5)", "axis=1"):
        cross_entropy(TOKENS, torch.zeros(3, 5, dtype=torch.int64))
    with refused("(3, 6, 5)", "(3, 6)", "got shape (3, 5)", "axis=1"):
        CrossEntropy()(TOKENS, torch.zeros(3, 5, dtype=torch.int64))
    with refused("(3, 5, 2, 3)", "(3, 2, 3)", "got shape (3,)"):
        CrossEntropy()(of_maps(TOKENS, 2, 3), torch.zeros(3, dtype=torch.int64))
    with refused("(3, 6, 5)", "(3, 7, 5)", "positions"):
        SoftTargets()(TOKENS, drawn(3, 7, 5))
    with refused("must be (3, 6)", "got shape (3,)"):
        soft_targets(TOKENS, TAUGHT, mask=torch.ones(3, dtype=torch.bool))


def test_plain_tensors_are_guarded_from_autocast() -> None:
    expected = SoftTargets()(SAMPLES.float(), OTHERS.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SoftTargets()(SAMPLES.float(), OTHERS.float()), expected)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = TOKENS.clone().requires_grad_(), TAUGHT.clone().requires_grad_()
    SoftTargets(4.0, -100)(student, teacher, PLACES).backward()
    assert student.grad is not None
    assert student.grad.any(-1).tolist() == (PLACES != -100).tolist()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda z: CrossEntropy()(z, PLACES), (TOKENS.clone().requires_grad_(),))
