"""Triplet losses: known values, plain loops, gradients, the draw of triplets, collapse, and a short training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.losses import draw_triplets, triplet_loss
from tutelage.models.outputs import Outputs
from tutelage.terms import Triplets
from tutelage.terms.triplets import collapsed

BatchOf = Callable[[Tensor], Batch]
FORMS: list[dict[str, Any]] = [
    {"form": "relative"},
    {"form": "bounded"},
    {"form": "bounded", "nested": True},
    {"form": "absolute"},
]


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference_loss(positive: float, negative: float, form: str, nested: bool = False) -> float:
    if form == "absolute":
        return max(3 - negative, 0) + max(positive - 1, 0)
    if form == "relative":
        return max(positive - negative + 1, 0)
    if nested:
        return max(positive - negative + 1 + max(positive - 1, 0), 0)
    return max(positive - negative + 1, 0) + max(positive - 1, 0)


def value(term: Triplets, embedding: Tensor, batch: Batch) -> Tensor:
    return term(Outputs(None, {"embedding": embedding}), None, batch)


# --- the function


@pytest.mark.parametrize(
    ("distances", "relative", "bounded", "absolute"),
    [((0.5, 4), 0, 0, 0), ((2, 4), 0, 1, 1), ((0.5, 1), 0.5, 0.5, 2), ((2, 2), 1, 2, 2), ((10, 12), 0, 9, 9)],
)
def test_known_values(distances: tuple[float, float], relative: float, bounded: float, absolute: float) -> None:
    positive, negative = (torch.tensor(float(d)) for d in distances)
    assert triplet_loss(positive, negative, "relative").item() == relative
    assert triplet_loss(positive, negative, "bounded").item() == bounded
    assert triplet_loss(positive, negative, "absolute").item() == absolute


def test_nested_form_differs_for_wide_gaps() -> None:
    positive, negative = torch.tensor([2.0, 2.0]), torch.tensor([40.0, 2.0])
    assert triplet_loss(positive, negative, "bounded").tolist() == [1, 2]
    assert triplet_loss(positive, negative, "bounded", nested=True).tolist() == [0, 2]


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_equals_plain_arithmetic(settings: dict[str, Any]) -> None:
    positive, negative = (5 * features(2, 3, 4, seed=1).abs()).unbind()
    expected = [
        reference_loss(p, n, **settings)
        for p, n in zip(positive.flatten().tolist(), negative.flatten().tolist(), strict=True)
    ]
    result = triplet_loss(positive, negative, **settings)
    assert result.shape == (3, 4)
    assert result.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_margins_can_be_set() -> None:
    positive, negative = torch.tensor(2.0), torch.tensor(2.5)
    assert triplet_loss(positive, negative, "relative", 2.0).item() == 1.5
    assert triplet_loss(positive, negative, "bounded", 2.0, 0.5).item() == 3.0
    assert triplet_loss(positive, negative, "absolute", 4.0, 1.5).item() == 2.0


def test_gradients_by_the_distances() -> None:
    """Active hinges have a derivative of 1, those of negatives beyond alpha and positives within beta of 0."""
    cases = {(2.0, 2.0): (1.0, -1.0), (0.5, 2.0): (0.0, -1.0), (2.0, 4.0): (1.0, 0.0), (0.5, 4.0): (0.0, 0.0)}
    for (p, n), slopes in cases.items():
        positive, negative = torch.tensor(p, requires_grad=True), torch.tensor(n, requires_grad=True)
        assert torch.autograd.grad(triplet_loss(positive, negative, "absolute"), (positive, negative)) == slopes
    positive, negative = torch.tensor(2.0, requires_grad=True), torch.tensor(2.5, requires_grad=True)
    assert torch.autograd.grad(triplet_loss(positive, negative, "bounded"), (positive, negative)) == (2.0, -1.0)


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_gradcheck(settings: dict[str, Any]) -> None:
    points = features(3, 5, 4).requires_grad_()

    def loss(points: Tensor) -> Tensor:
        anchor, positive, negative = points
        return triplet_loss((anchor - positive).square().sum(1), (anchor - negative).square().sum(1), **settings)

    assert torch.autograd.gradcheck(loss, (points,))


# --- the draw


def test_positives_and_negatives_are_drawn_uniformly() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2, -1])
    draws = [draw_triplets(targets) for _ in range(3000)]
    positives = torch.stack([positive[0] for positive, _, _ in draws])
    negatives = torch.stack([negative[0] for _, negative, _ in draws])
    assert torch.bincount(positives, minlength=8).tolist() == pytest.approx([0, 1000, 1000, 1000, 0, 0, 0, 0], abs=120)
    assert torch.bincount(negatives, minlength=8).tolist() == pytest.approx([0, 0, 0, 0, 1000, 1000, 1000, 0], abs=120)
    assert all(is_complete.tolist() == [True] * 6 + [False] * 2 for _, _, is_complete in draws)


def test_draw_depends_on_torch_generator_only() -> None:
    targets = torch.arange(24) % 4
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(torch.cat(draw_triplets(targets)[:2]))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- the term


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_term_is_mean_over_all_drawn_triplets(settings: dict[str, Any], batch_of: BatchOf) -> None:
    embedding, targets = features(12, 3), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, -1, 3, -1])
    torch.manual_seed(5)
    result = value(Triplets(**settings), embedding, batch_of(targets))
    torch.manual_seed(5)
    positive, negative, is_complete = draw_triplets(targets)
    losses = []
    for anchor in is_complete.nonzero().flatten().tolist():
        p, n = int(positive[anchor]), int(negative[anchor])
        assert p != anchor
        assert targets[p] == targets[anchor] != targets[n] != -1
        near, far = (
            sum((a - b) ** 2 for a, b in zip(*pair, strict=True))
            for pair in (
                (embedding[anchor].tolist(), embedding[p].tolist()),
                (embedding[anchor].tolist(), embedding[n].tolist()),
            )
        )
        losses.append(reference_loss(near, far, **settings))
    assert len(losses) == 9
    assert 0 in losses
    assert result.shape == ()
    assert result.item() == pytest.approx(sum(losses) / 9, rel=1e-12)


def test_mean_includes_triplets_of_zero_loss(batch_of: BatchOf) -> None:
    """The losses at (d_ap, d_an) = (2, 4) and (0.5, 4) are 1 and 0; the mean is 0.5, without zeros it would be 1."""
    losses = triplet_loss(torch.tensor([0.5, 2.0]), torch.tensor([4.0, 4.0]))
    assert losses.mean() == 0.5
    # On a line: 0 and sqrt(2) of one class, both more than sqrt(3) from the other class, whose two samples coincide.
    line = torch.tensor([[0.0], [2**0.5], [5.0], [5.0]])
    result = value(Triplets(), line, batch_of(torch.tensor([0, 0, 1, 1])))
    assert result.item() == pytest.approx((1 + 1 + 0 + 0) / 4)


@pytest.mark.parametrize("targets", [[0, 1, 2, 3], [0, 0, 0, 0], [-1, -1, -1, -1]], ids=str)
def test_batch_without_triplets_has_zero_loss(targets: list[int], batch_of: BatchOf) -> None:
    embedding = features(4, 3).requires_grad_()
    result = value(Triplets(), embedding, batch_of(torch.tensor(targets)))
    result.backward()
    assert result.item() == 0
    assert embedding.grad is not None
    assert (embedding.grad == 0).all()


def test_soft_labels_count_as_their_largest_class(batch_of: BatchOf) -> None:
    embedding, targets = features(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    values = []
    for form in (targets, F.one_hot(targets, 3) * 0.7 + 0.1):
        torch.manual_seed(1)
        values.append(value(Triplets(), embedding, batch_of(form)).item())
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_collapsed_embedding_has_margin_as_loss_and_no_gradient(settings: dict[str, Any], batch_of: BatchOf) -> None:
    embedding = torch.full((8, 5), 0.3, requires_grad=True)
    result = value(Triplets(**settings), embedding, batch_of(torch.arange(8) % 2))
    result.backward()
    assert result.item() == (3 if settings["form"] == "absolute" else 1)
    assert embedding.grad is not None
    assert (embedding.grad == 0).all()
    assert collapsed(embedding)


def test_collapse_threshold() -> None:
    spread = features(100, 8).float()
    assert not collapsed(spread)
    assert collapsed(7.0 + 5e-4 * spread)
    assert not collapsed(7.0 + 5e-3 * spread)
    assert not collapsed(F.pad(spread[:, :1], (0, 7)))  # one dimension is enough
    assert collapsed(spread[:1])
    assert collapsed(torch.zeros(4, 2, 3, 3))
    assert not collapsed(torch.full((4, 2), torch.nan))
    assert collapsed(spread).dtype == torch.bool


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_invariant_to_translation_but_not_scale(settings: dict[str, Any], batch_of: BatchOf) -> None:
    embedding, batch = features(12, 3), batch_of(torch.arange(12) % 3)
    values = []
    for changed_embedding in (embedding, embedding + 40, 3 * embedding):
        torch.manual_seed(2)
        values.append(value(Triplets(**settings), changed_embedding, batch).item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert abs(values[0] - values[2]) > 0.1


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_squares_beyond_range_of_float16(half: torch.dtype, batch_of: BatchOf) -> None:
    result = value(Triplets("absolute"), (300 * features(6, 4)).to(half), batch_of(torch.arange(6) % 2))
    assert result.dtype == torch.float32
    assert result.isfinite()


def test_nan_is_not_hidden(batch_of: BatchOf) -> None:
    embedding = features(6, 4)
    embedding[1, 2] = math.nan
    assert value(Triplets(), embedding, batch_of(torch.arange(6) % 2)).isnan()


def test_roles_and_invalid_settings_of_term() -> None:
    term = Triplets()
    assert (term.roles, term.teacher_roles, list(term.parameters())) == (("embedding",), (), [])
    assert (Triplets("relative").alpha, Triplets("bounded").alpha, Triplets("absolute").alpha) == (1, 1, 3)
    with pytest.raises(TutelageError, match="batch"):
        term(Outputs(None, {"embedding": features(2, 2)}), None, None)
    invalid_settings: list[tuple[dict[str, Any], str]] = [
        ({"form": "hard"}, "form"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"beta": -1.0}, "beta"),
        ({"alpha": 1.0, "beta": 1.0}, "beta < alpha"),
        ({"form": "relative", "nested": True}, "nested"),
    ]
    for settings, match in invalid_settings:
        with pytest.raises(TutelageError, match=match):
            Triplets(**settings)


def test_training_separates_classes_by_the_margins(batch_of: BatchOf) -> None:
    """On separable data, the largest squared distance in a class becomes about 1, the smallest between classes 3."""
    torch.manual_seed(0)
    centres, targets = 2 * torch.eye(4), torch.arange(48) % 4
    inputs = centres[targets] + 0.2 * torch.randn(48, 4)
    net, term, batch = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)), Triplets(), batch_of(targets)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        value(term, net(inputs), batch).backward()
        optimiser.step()
    with torch.no_grad():
        distances = torch.cdist(net(inputs), net(inputs)).square()
    equal = targets[:, None] == targets
    assert distances[equal].max() < 1.1
    assert distances[~equal].min() > 2.9


# --- against pytorch-metric-learning


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_equals_pytorch_metric_learning_over_all_triplets(form: str) -> None:
    """Its triplet margin loss is the relative form; its contrastive loss has the absolute form's hinges, over pairs."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.reducers import MeanReducer
    from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices, get_all_triplets_indices

    embedding, targets = features(8, 5), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    squared = torch.cdist(embedding, embedding).square()
    options = {"distance": LpDistance(normalize_embeddings=False, power=2), "reducer": MeanReducer()}
    if form == "relative":
        expected = losses.TripletMarginLoss(margin=1, **options)(embedding, targets)
        a, p, n = get_all_triplets_indices(targets)
        result = triplet_loss(squared[a, p], squared[a, n], "relative").mean()
    else:
        expected = losses.ContrastiveLoss(pos_margin=1, neg_margin=3, **options)(embedding, targets)
        a, p, b, n = get_all_pairs_indices(targets)
        zero = torch.zeros((), dtype=torch.float64)
        result = triplet_loss(squared[a, p], zero + 3, "absolute").mean() + triplet_loss(zero, squared[b, n]).mean()
    torch.testing.assert_close(result, expected)
