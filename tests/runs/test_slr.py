"""The method slr: folds, refined targets, and the student's training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, Grades, Quantities, Split, Vectors
from tutelage.data.stratified import stratified_folds
from tutelage.evaluation import predict
from tutelage.evaluation.ordinal import expected_grade
from tutelage.methods import find
from tutelage.methods.slr import mixed, refined
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, execute
from tutelage.terms.cross_entropy import cross_entropy
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.1)
BRIEF = {"folds": 2}  # for the conformance tests


class Watched(Run):
    """Records what each network is trained on, and what it predicts for which samples."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trained: list[tuple[Tapped, Data]] = []
        self.predicted: list[tuple[Tapped, Tensor, Tensor]] = []

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> FitResult:
        assert data is not None
        self.trained.append((learners[0].model, data))
        return super().fit(*learners, data=data, **options)

    def predict(self, model: Tapped, split: Split) -> Tensor:
        logits = super().predict(model, split)
        self.predicted.append((model, split.index, logits))
        return logits


@pytest.fixture
def recording_run(tiny_data: Data, on_cpu: Hardware) -> Callable[..., Watched]:
    def make(student: Callable[[], Tapped], data: Data = tiny_data, **options: Any) -> Watched:
        return Watched(data, student, **({"recipe": RECIPE, "hardware": on_cpu, "seed": 3} | options))

    return make


@pytest.fixture
def new_model(tiny_model: Callable[..., Tapped]) -> Callable[[], Tapped]:
    """A new network at each call, seeded by the run."""
    return lambda: tiny_model(int(torch.randint(9999, ())))


# --- the targets


def test_targets_are_mixed() -> None:
    labels, predicted = torch.tensor([0, 2, -1]), torch.randn(3, 4).softmax(1)
    result = mixed(labels, predicted, 0.3)
    assert torch.allclose(result.sum(1), torch.ones(3))
    assert torch.allclose(result[:2], 0.7 * F.one_hot(labels[:2], 4) + 0.3 * predicted[:2])
    assert torch.allclose(result[2], predicted[2])
    soft = torch.randn(3, 4).softmax(1)
    assert torch.allclose(mixed(soft, predicted, 0.3), 0.7 * soft + 0.3 * predicted)


def test_share_of_zero_and_one() -> None:
    labels, predicted = torch.tensor([1, 0, -1]), torch.randn(3, 3).softmax(1)
    assert mixed(labels, predicted, 0.0).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert torch.equal(mixed(labels, predicted, 1.0), predicted)


def test_label_stays_largest_up_to_share_one_half() -> None:
    labels, predicted = torch.randint(5, (200,)), (4 * torch.randn(200, 5)).softmax(1)
    assert torch.equal(mixed(labels, predicted, 0.5).argmax(1), labels)
    assert not torch.equal(mixed(labels, predicted, 0.8).argmax(1), labels)


def test_one_hot_label_equals_hard_label() -> None:
    logits = torch.randn(64, 10, requires_grad=True)
    labels = torch.randint(-1, 10, (64,))
    rows = mixed(labels, torch.full((64, 10), 0.1), 0.0)
    values = [cross_entropy(logits, targets) for targets in (labels, rows)]
    gradients = [torch.autograd.grad(value.mean(), logits, retain_graph=True)[0] for value in values]
    assert torch.equal(*values)
    assert torch.equal(*gradients)


def test_minimum_loss_is_entropy_of_targets() -> None:
    targets = torch.randn(6, 4).softmax(1)
    entropy = -(targets * targets.log()).sum(1)
    assert torch.allclose(cross_entropy(targets.log(), targets), entropy)
    assert (cross_entropy(targets.log() + torch.randn(6, 4), targets) > entropy).all()


# --- the folds


def test_folds_are_stratified_and_disjoint() -> None:
    labels = torch.cat([torch.zeros(40), torch.ones(20), torch.full((3,), -1.0)]).long()
    folds = list(stratified_folds(labels, 5, seed=1))
    assert torch.equal(torch.cat([held_out for _, held_out in folds]).sort().values, torch.arange(63))
    for train_indices, held_out in folds:
        assert torch.equal(torch.cat([train_indices, held_out]).sort().values, torch.arange(63))
        assert [(labels[held_out] == c).sum() for c in (0, 1)] == [8, 4]


def test_each_round_has_new_folds() -> None:
    labels = torch.arange(40) % 4
    first, same_round, other = (
        [held_out.tolist() for _, held_out in stratified_folds(labels, 2, seed)] for seed in (1, 1, 2)
    )
    assert first == same_round
    assert first != other


# --- the rounds


@pytest.mark.parametrize("anchor", ["original", "previous"])
def test_predictions_are_out_of_fold(
    anchor: Any, recording_run: Callable[..., Watched], new_model: Callable[[], Tapped], tiny_data: Data
) -> None:
    train = tiny_data.train
    labels = train.labels.clone()
    labels[[3, 4]] = -1
    moved_train = replace(train, labels=labels, index=train.index + 100)
    run = recording_run(new_model, replace(tiny_data, train=moved_train))
    find("slr")(run, rounds=2, folds=3, share=0.6, anchor=anchor)
    *fits, (last, data) = run.trained
    assert len(fits) == len(run.predicted) == 6
    assert last is not fits[0][0]
    assert len({model for model, _ in run.trained}) == 7  # a new network each
    targets = mixed(labels, torch.ones(48, 4), 0.0)
    for round_number in range(2):
        answers = torch.full((48, 4), float("nan"))
        for (model, training_data), (predicting_model, index, logits) in zip(
            fits[3 * round_number : 3 * round_number + 3],
            run.predicted[3 * round_number : 3 * round_number + 3],
            strict=True,
        ):
            assert model is predicting_model
            assert training_data.validation is None
            # never on a training sample, and each sample is predicted once
            assert set(training_data.train.index.tolist()).isdisjoint(index.tolist())
            assert len(training_data.train) + len(index) == 48
            assert answers[index - 100].isnan().all()
            answers[index - 100] = logits.softmax(1)
            # all folds of a round use the targets of the previous round
            expected = targets if round_number else labels
            assert torch.allclose(training_data.train.labels, expected[training_data.train.index - 100], atol=1e-6)
        old = targets if anchor == "previous" else mixed(labels, answers, 0.0)
        is_labelled = (old.sum(1) > 0)[:, None]
        targets = torch.where(is_labelled, 0.4 * old + 0.6 * answers, answers)
        assert torch.allclose(targets.sum(1), torch.ones(48))
    assert torch.allclose(data.train.labels, targets, atol=1e-6)
    assert torch.equal(data.train.index, moved_train.index)
    assert data.validation is tiny_data.validation


class Constant(nn.Module):
    """Predicts the class frequencies for any image."""

    def __init__(self, prior: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(prior.log())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_constant_network_smooths_labels(recording_run: Callable[..., Watched]) -> None:
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    run = recording_run(lambda: Tapped(Constant(prior)), recipe=RECIPE.replace(lr=1e-9, weight_decay=0.0))
    result = refined(run, rounds=3, folds=4, share=0.25, anchor="original")
    expected = 0.75 * F.one_hot(run.data.train.labels, 4) + 0.25 * prior
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("with_absent_labels", [False, True])
def test_share_zero_equals_plain(
    with_absent_labels: bool,
    tiny_data: Data,
    new_model: Callable[[], Tapped],
    on_cpu: Hardware,
    state_of: Any,
    changed: Any,
) -> None:
    labels = tiny_data.train.labels.clone()
    labels[::7] = -1 if with_absent_labels else labels[::7]
    data = replace(tiny_data, train=replace(tiny_data.train, labels=labels))

    def train_with(name: str, **settings: Any) -> Any:
        run = Run(data, new_model, recipe=RECIPE, hardware=on_cpu, seed=2)
        return state_of(find(name)(run, **settings))

    plain = train_with("plain")
    assert changed(plain, train_with("slr", share=0.0, rounds=2, folds=2)) == set()
    assert changed(plain, train_with("slr", share=0.5, rounds=1, folds=2))


def test_soft_labels_are_accepted(
    soft: Data, recording_run: Callable[..., Watched], new_model: Callable[[], Tapped]
) -> None:
    result = refined(recording_run(new_model, soft), rounds=1, folds=2, share=0.5, anchor="original")
    assert torch.allclose(result.sum(1), torch.ones(48))
    assert not torch.equal(result, soft.train.labels)


def test_grades_are_evaluated_by_kappa(tiny_data: Data, tmp_path: Path) -> None:
    train, held_out, test = (
        replace(split, targets=Grades()) for split in (tiny_data.train, tiny_data.validation, tiny_data.test) if split
    )
    data = replace(tiny_data, train=train, validation=held_out, test=test)
    config = Config(student="resnet8x0.25", method="slr", epochs=1, batch_size=16, settings=BRIEF | {"rounds": 1})
    config = config.replace(device="cpu", precision="float32", workers=0)
    result = execute(config, tmp_path, overrides=Overrides(data=data))
    assert (result.metrics["task"], result.metrics["main"]) == ("ordinal", "kappa")
    logits = predict(result.model, data.test, device="cpu")
    kappa = cohen_kappa_score(expected_grade(logits), data.test.labels, weights="quadratic")
    assert result.metrics["test"]["kappa"] == pytest.approx(kappa, abs=1e-6)


# --- errors


def test_other_targets_are_refused(
    recording_run: Callable[..., Watched], new_model: Callable[[], Tapped], refused: Any
) -> None:
    labels = torch.rand(48, 1)
    train = Split.of(torch.randn(48, 6), labels, Vectors(), Quantities())
    with refused("slr needs one class for each sample", "quantities"):
        find("slr")(recording_run(new_model, Data("numbers", ("a",), train, train)))


def test_class_with_fewer_samples_than_folds_is_refused(
    recording_run: Callable[..., Watched], new_model: Callable[[], Tapped], tiny_data: Data, refused: Any
) -> None:
    indices = torch.cat([(tiny_data.train.labels != 2).nonzero().squeeze(1), torch.tensor([2, 6, 10])])
    run = recording_run(new_model, replace(tiny_data, train=tiny_data.train.subset(indices)))
    with refused("class 'c' has 3 training samples", "5 folds", "fewer folds"):
        find("slr")(run)


@pytest.mark.parametrize("invalid_settings", [{"rounds": 0}, {"folds": 1}, {"share": 1.2}, {"anchor": "none"}])
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any],
    recording_run: Callable[..., Watched],
    new_model: Callable[[], Tapped],
    refused: Any,
) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        find("slr")(recording_run(new_model), **invalid_settings)
