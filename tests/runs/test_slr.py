"""Label refinery: who predicts for whom, what becomes of the targets, and what the student is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split
from tutelage.methods import find
from tutelage.methods.slr import mixed, refined, stratified_folds
from tutelage.models.tapped import Tapped
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.training import Learner, Run
from tutelage.training.fit import Fitted

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.1)
BRIEF = {"folds": 2}  # for the conformance tests


class Watched(Run):
    """Notes what each network is trained on, and what it then predicts for which samples."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trained: list[tuple[Tapped, Data]] = []
        self.predicted: list[tuple[Tapped, Tensor, Tensor]] = []

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> Fitted:
        assert data is not None
        self.trained.append((learners[0].model, data))
        return super().fit(*learners, data=data, **options)

    def predict(self, model: Tapped, split: Split) -> Tensor:
        logits = super().predict(model, split)
        self.predicted.append((model, split.index, logits))
        return logits


@pytest.fixture
def watched(tiny_data: Data, on_cpu: Hardware) -> Callable[..., Watched]:
    def make(student: Callable[[], Tapped], data: Data = tiny_data, **options: Any) -> Watched:
        return Watched(data, student, **({"recipe": RECIPE, "hardware": on_cpu, "seed": 3} | options))

    return make


@pytest.fixture
def fresh(tiny_model: Callable[..., Tapped]) -> Callable[[], Tapped]:
    """Another network each time, as the run's seed has it."""
    return lambda: tiny_model(int(torch.randint(9999, ())))


# --- the targets


def test_targets_are_mixed() -> None:
    labels, predicted = torch.tensor([0, 2, -1]), torch.randn(3, 4).softmax(1)
    found = mixed(labels, predicted, 0.3)
    assert torch.allclose(found.sum(1), torch.ones(3))
    assert torch.allclose(found[:2], 0.7 * F.one_hot(labels[:2], 4) + 0.3 * predicted[:2])
    assert torch.allclose(found[2], predicted[2])
    soft = torch.randn(3, 4).softmax(1)
    assert torch.allclose(mixed(soft, predicted, 0.3), 0.7 * soft + 0.3 * predicted)


def test_the_ends_of_the_share() -> None:
    labels, predicted = torch.tensor([1, 0, -1]), torch.randn(3, 3).softmax(1)
    assert mixed(labels, predicted, 0.0).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert torch.equal(mixed(labels, predicted, 1.0), predicted)


def test_up_to_a_half_the_label_stays_the_largest() -> None:
    labels, predicted = torch.randint(5, (200,)), (4 * torch.randn(200, 5)).softmax(1)
    assert torch.equal(mixed(labels, predicted, 0.5).argmax(1), labels)
    assert not torch.equal(mixed(labels, predicted, 0.8).argmax(1), labels)


def test_a_label_as_a_row_of_ones_and_zeros_is_that_label() -> None:
    logits = torch.randn(64, 10, requires_grad=True)
    labels = torch.randint(-1, 10, (64,))
    rows = mixed(labels, torch.full((64, 10), 0.1), 0.0)
    values = [cross_entropy(logits, targets) for targets in (labels, rows)]
    gradients = [torch.autograd.grad(value.mean(), logits, retain_graph=True)[0] for value in values]
    assert torch.equal(*values)
    assert torch.equal(*gradients)


def test_the_least_loss_is_the_entropy_of_the_targets() -> None:
    targets = torch.randn(6, 4).softmax(1)
    entropy = -(targets * targets.log()).sum(1)
    assert torch.allclose(cross_entropy(targets.log(), targets), entropy)
    assert (cross_entropy(targets.log() + torch.randn(6, 4), targets) > entropy).all()


# --- the folds


def test_folds_leave_each_sample_out_once_and_every_class_evenly() -> None:
    labels = torch.cat([torch.zeros(40), torch.ones(20), torch.full((3,), -1.0)]).long()
    folds = list(stratified_folds(labels, 5, seed=1))
    assert torch.equal(torch.cat([out for _, out in folds]).sort().values, torch.arange(63))
    for kept, out in folds:
        assert torch.equal(torch.cat([kept, out]).sort().values, torch.arange(63))
        assert [(labels[out] == c).sum() for c in (0, 1)] == [8, 4]


def test_each_round_splits_anew() -> None:
    labels = torch.arange(40) % 4
    first, again, other = ([out.tolist() for _, out in stratified_folds(labels, 2, seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


# --- the rounds


@pytest.mark.parametrize("anchor", ["original", "previous"])
def test_who_predicts_for_whom_and_when(
    anchor: Any, watched: Callable[..., Watched], fresh: Callable[[], Tapped], tiny_data: Data
) -> None:
    train = tiny_data.train
    labels = train.labels.clone()
    labels[[3, 4]] = -1
    moved = replace(train, labels=labels, index=train.index + 100)
    run = watched(fresh, replace(tiny_data, train=moved))
    find("slr")(run, rounds=2, folds=3, share=0.6, anchor=anchor)
    *fits, (last, data) = run.trained
    assert len(fits) == len(run.predicted) == 6
    assert last is not fits[0][0]
    assert len({model for model, _ in run.trained}) == 7  # a fresh network each
    targets = mixed(labels, torch.ones(48, 4), 0.0)
    for turn in range(2):
        answers = torch.full((48, 4), float("nan"))
        for (model, shown), (asked, index, logits) in zip(
            fits[3 * turn : 3 * turn + 3], run.predicted[3 * turn : 3 * turn + 3], strict=True
        ):
            assert model is asked
            assert shown.validation is None
            # never on a sample that it was trained on, and each sample is refreshed once
            assert set(shown.train.index.tolist()).isdisjoint(index.tolist())
            assert len(shown.train) + len(index) == 48
            assert answers[index - 100].isnan().all()
            answers[index - 100] = logits.softmax(1)
            # all folds of a round learn from the targets of the round before
            expected = targets if turn else labels
            assert torch.allclose(shown.train.labels, expected[shown.train.index - 100], atol=1e-6)
        old = targets if anchor == "previous" else mixed(labels, answers, 0.0)
        known = (old.sum(1) > 0)[:, None]
        targets = torch.where(known, 0.4 * old + 0.6 * answers, answers)
        assert torch.allclose(targets.sum(1), torch.ones(48))
    assert torch.allclose(data.train.labels, targets, atol=1e-6)
    assert torch.equal(data.train.index, moved.index)
    assert data.validation is tiny_data.validation


class Constant(nn.Module):
    """Knows how frequent the classes are, and nothing of the image."""

    def __init__(self, prior: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(prior.log())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_a_network_that_knows_the_prior_alone_smooths_the_labels(watched: Callable[..., Watched]) -> None:
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    run = watched(lambda: Tapped(Constant(prior)), recipe=RECIPE.replace(lr=1e-9, weight_decay=0.0))
    found = refined(run, rounds=3, folds=4, share=0.25, anchor="original")
    expected = 0.75 * F.one_hot(run.data.train.labels, 4) + 0.25 * prior
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("absent", [False, True])
def test_without_a_share_it_is_the_plain_run(
    absent: bool,
    tiny_data: Data,
    fresh: Callable[[], Tapped],
    on_cpu: Hardware,
    state_of: Any,
    changed: Any,
) -> None:
    labels = tiny_data.train.labels.clone()
    labels[::7] = -1 if absent else labels[::7]
    data = replace(tiny_data, train=replace(tiny_data.train, labels=labels))

    def go(name: str, **settings: Any) -> Any:
        run = Run(data, fresh, recipe=RECIPE, hardware=on_cpu, seed=2)
        return state_of(find(name)(run, **settings))

    plain = go("plain")
    assert changed(plain, go("slr", share=0.0, rounds=2, folds=2)) == set()
    assert changed(plain, go("slr", share=0.5, rounds=1, folds=2))


def test_labels_may_be_soft_to_begin_with(
    soft: Data, watched: Callable[..., Watched], fresh: Callable[[], Tapped]
) -> None:
    found = refined(watched(fresh, soft), rounds=1, folds=2, share=0.5, anchor="original")
    assert torch.allclose(found.sum(1), torch.ones(48))
    assert not torch.equal(found, soft.train.labels)


# --- what does not fit


def test_a_class_with_fewer_samples_than_folds(
    watched: Callable[..., Watched], fresh: Callable[[], Tapped], tiny_data: Data, refused: Any
) -> None:
    places = torch.cat([(tiny_data.train.labels != 2).nonzero().squeeze(1), torch.tensor([2, 6, 10])])
    run = watched(fresh, replace(tiny_data, train=tiny_data.train.subset(places)))
    with refused("class 'c' has 3 training samples", "5 folds", "fewer folds"):
        find("slr")(run)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"folds": 1}, {"share": 1.2}, {"anchor": "none"}])
def test_settings_that_cannot_be(
    wrong: dict[str, Any], watched: Callable[..., Watched], fresh: Callable[[], Tapped], refused: Any
) -> None:
    ((name, value),) = wrong.items()
    with refused(name, value):
        find("slr")(watched(fresh), **wrong)
