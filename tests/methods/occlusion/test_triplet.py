"""The triplet loss between student and teacher: closed forms, plain loops, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.methods.occlusion.triplet import CrossTriplets, cross_triplets
from tutelage.models.outputs import Outputs

BatchOf = Callable[[Tensor], Batch]


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_losses(student: Tensor, teacher: Tensor, targets: list[int], margin: float) -> list[float]:
    def squared(a: Tensor, b: Tensor) -> float:
        return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))

    losses = []
    for a, label in enumerate(targets):
        positives = [squared(student[a], teacher[p]) for p, other in enumerate(targets) if label == other >= 0]
        negatives = [
            squared(student[a], student[n])
            for n, other in enumerate(targets)
            if -1 not in (other, label) and other != label
        ]
        losses.append(max(0.0, margin + max(positives) - min(negatives)) if positives and negatives else 0.0)
    return losses


@pytest.mark.parametrize("targets", [[0, 0, 1, 1, 2, 2, 0], [0, 1, -1, 1, -1, 2, 0], [3] * 7, [-1] * 7])
@pytest.mark.parametrize("margin", [0.2, 5.0])
def test_plain_loops(targets: list[int], margin: float) -> None:
    student, teacher = vectors(7, 5), vectors(7, 5, seed=1)
    losses, _, _ = cross_triplets(student, teacher, torch.tensor(targets), margin)
    torch.testing.assert_close(
        losses, torch.tensor(reference_losses(student, teacher, targets, margin), dtype=torch.float64)
    )


def test_loss_is_zero_for_satisfied_triplets() -> None:
    centres = torch.eye(3, dtype=torch.float64)
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    losses, _, _ = cross_triplets(centres[targets], centres[targets], targets, margin=0.3)
    assert torch.equal(losses, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("margin", [0.2, 0.3, 0.5])
def test_loss_equals_margin_if_all_embeddings_coincide(margin: float) -> None:
    """This indicates a collapse."""
    equal = vectors(1, 5).expand(6, 5)
    losses, _, _ = cross_triplets(equal, equal, torch.tensor([0, 0, 1, 1, 2, 2]), margin)
    assert losses.tolist() == [margin] * 6


def test_gradient_of_anchor() -> None:
    """It is 2 (s_n - t_p) for an anchor of an active triplet that is not a negative of another."""
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.1, 0.2]], dtype=torch.float64, requires_grad=True)
    teacher = vectors(3, 2).requires_grad_()
    losses, positive, negative = cross_triplets(student, teacher, torch.tensor([0, 1, 0]), margin=9.0)
    (gradient,) = torch.autograd.grad(losses[0], student, retain_graph=True)
    torch.testing.assert_close(gradient[0], 2 * (student[negative[0]] - teacher[positive[0]]).detach())
    torch.testing.assert_close(gradient[1], 2 * (student[0] - student[1]).detach())  # and it pushes the negative away
    losses.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_gradcheck() -> None:
    teacher, targets = vectors(6, 4, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    student = vectors(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: cross_triplets(s, teacher, targets, 9.0)[0], student)


def test_positive_is_of_the_teacher() -> None:
    student, teacher, targets = vectors(6, 4), vectors(6, 4, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    losses = cross_triplets(student, teacher, targets, 9.0)[0]
    assert not torch.equal(losses, cross_triplets(student, student, targets, 9.0)[0])
    assert not torch.equal(losses, cross_triplets(teacher, student, targets, 9.0)[0])


# --- the term


def outputs(embedding: Tensor) -> Outputs:
    return Outputs(None, {"embedding": embedding})


def test_term_compares_directions(batch_of: BatchOf) -> None:
    student, teacher, batch = vectors(6, 4), vectors(6, 4, seed=1), batch_of(torch.tensor([0, 0, 1, 1, 2, 2]))
    term = CrossTriplets(0.4)
    term.build(outputs(student), outputs(teacher))
    result = term(outputs(student), outputs(teacher), batch)
    unit = [embeddings / embeddings.norm(dim=1, keepdim=True) for embeddings in (student, teacher)]
    torch.testing.assert_close(result, cross_triplets(*unit, batch.targets, 0.4)[0])
    torch.testing.assert_close(term(outputs(3 * student), outputs(0.2 * teacher), batch), result)
    assert list(term.parameters()) == []


def test_different_widths_need_a_projection(batch_of: BatchOf) -> None:
    student, teacher, batch = vectors(6, 4), vectors(6, 7, seed=1), batch_of(torch.tensor([0, 0, 1, 1, 2, 2]))
    term = CrossTriplets(0.4)
    with pytest.raises(TutelageError, match="build"):
        term(outputs(student), outputs(teacher), batch)
    term.build(outputs(student), outputs(teacher))
    term(outputs(student), outputs(teacher), batch).mean().backward()
    (weight,) = term.parameters()
    assert weight.shape == (7, 4)
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_soft_labels_count_as_their_largest_class(batch_of: BatchOf) -> None:
    student, teacher, hard = vectors(4, 3), vectors(4, 3, seed=1), torch.tensor([0, 0, 1, 1])
    soft = torch.eye(2)[hard] * 0.8 + 0.1
    first, second = (cross_triplets(student, teacher, targets)[0] for targets in (hard, soft))
    assert torch.equal(first, second)


@pytest.mark.parametrize("margin", [0.0, 4.0, -1.0, math.inf, math.nan])
def test_invalid_margins_are_refused(margin: float) -> None:
    with pytest.raises(TutelageError, match="margin"):
        CrossTriplets(margin)


def test_half_precision_and_autocast(batch_of: BatchOf) -> None:
    """Also under autocast."""
    student, teacher, batch = (
        vectors(6, 4).float(),
        vectors(6, 4, seed=1).float(),
        batch_of(torch.tensor([0, 0, 1, 1, 2, 2])),
    )
    term: Any = CrossTriplets(0.4)
    term.build(outputs(student), outputs(teacher))
    expected = term(outputs(student), outputs(teacher), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(term(outputs(student), outputs(teacher), batch), expected)


def test_equals_pytorch_metric_learning() -> None:
    """With indices into [student; teacher], since its reference set holds positives and negatives."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.reducers import MeanReducer

    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    student, teacher = (F.normalize(vectors(6, 4, seed=seed)) for seed in (0, 1))
    result, positive, negative = cross_triplets(student, teacher, targets, 0.3)
    loss = losses.TripletMarginLoss(
        margin=0.3, distance=LpDistance(normalize_embeddings=False, power=2), reducer=MeanReducer()
    )
    expected = loss(
        torch.cat([student, teacher]), targets.repeat(2), indices_tuple=(torch.arange(6), 6 + positive, negative)
    )
    torch.testing.assert_close(result.mean(), expected)
