"""The method ili: relabelling, the stopping rule, disjoint halves, and what happens to labels and students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split, SymmetricNoise, open_data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.ili import has_dropped, relabelled
from tutelage.models.tapped import Tapped
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

BRIEF = {"rounds": 2}  # for the conformance tests
RECIPE = Recipe(epochs=1, batch_size=16, lr=0.1)


class Watched(Run):
    """Records what each network is trained on and what it predicts for training samples.

    ``answer`` replaces these predictions, and ``scores`` the numbers of right predictions of the rounds among the 16
    held-out samples.
    """

    answer: Callable[[Split], Tensor] | None = None
    scores: Sequence[int] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trained: list[tuple[Tapped, Split]] = []
        self.predicted: list[tuple[Tapped, Split]] = []
        self.evaluated = 0

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> FitResult:
        assert data is not None
        assert data.validation is self.data.validation  # its labels never change
        self.trained.append((learners[0].model, data.train))
        return super().fit(*learners, data=data, **options)

    def predict(self, model: Tapped, split: Split, roles: Any = ("logits",)) -> Tensor:
        if split is not self.data.validation:
            self.predicted.append((model, split))
            return super().predict(model, split, roles) if self.answer is None else self.answer(split)
        self.evaluated += 1
        if self.evaluated > len(self.scores):
            return super().predict(model, split, roles)
        right = torch.arange(16) < self.scores[self.evaluated - 1]
        return F.one_hot(torch.where(right, split.labels, (split.labels + 1) % 4), 4).float()


Make = Callable[..., Watched]


@pytest.fixture
def make(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Make:
    """``make(data=noisy, **attributes)``: a run of networks that are new at each call."""
    noisy = SymmetricNoise(0.5, 1)(tiny_data)

    def run(data: Data = noisy, **attributes: Any) -> Watched:
        student = lambda: tiny_model(int(torch.randint(9999, ())))  # noqa: E731
        watched = Watched(data, student, recipe=RECIPE, hardware=on_cpu, seed=3)
        for name, value in attributes.items():
            setattr(watched, name, value)
        return watched

    return run


def truth(split: Split) -> Tensor:
    """Logits of a network that predicts the clean labels with a probability of 1 to the last bit."""
    return 1000.0 * F.one_hot(split.clean_labels, 4)


def wrong(split: Split) -> Tensor:
    """Logits of a network that always predicts class 0."""
    return F.one_hot(torch.zeros_like(split.labels), 4).float()


# --- relabelling and stopping


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, [1, 2, 0, 2]), (0.25, [1, 2, 0, 2]), (0.5, [1, 1, 0, 2]), (0.75, [0, 1, 0, 2]), (1.0, [0, 1, 2, -1])],
)
def test_confident_predictions_become_labels(threshold: float, expected: list[int]) -> None:
    labels = torch.tensor([0, 1, 2, -1])
    probabilities = torch.tensor([[0.125, 0.75, 0.125], [0.25, 0.25, 0.5], [0.875, 0.125, 0.0], [0.0, 0.0625, 0.9375]])
    new, confidence = relabelled(labels, probabilities, threshold)
    assert new.tolist() == expected
    assert confidence.tolist() == [0.75, 0.5, 0.875, 0.9375]


def test_threshold_of_one_changes_nothing_even_for_probabilities_of_one() -> None:
    labels = torch.randint(-1, 5, (50,))
    probabilities = F.one_hot(torch.randint(5, (50,)), 5).float()
    assert torch.equal(relabelled(labels, probabilities, 1.0)[0], labels)


def test_relabelling_by_the_same_predictions_again_changes_nothing() -> None:
    labels, probabilities = torch.randint(-1, 5, (200,)), (3 * torch.randn(200, 5)).softmax(1)
    for threshold in (0.0, 0.7):
        new, _ = relabelled(labels, probabilities, threshold)
        assert not torch.equal(new, labels)
        assert torch.equal(relabelled(new, probabilities, threshold)[0], new)


def test_stopping_rule() -> None:
    scores = [0.50, 0.60, 0.58, 0.57]
    assert [has_dropped(scores[:count]) for count in range(1, 5)] == [False, False, False, True]
    assert not has_dropped([0.5, 0.1])  # never in the first two rounds
    assert has_dropped([0.5, 0.4, 0.3])
    assert not has_dropped([0.5, 0.4, 0.4])


# --- rounds


def test_one_round_equals_plain(make: Make, tiny_data: Data, state_of: Any, changed: Any) -> None:
    run = make()
    student = find("ili")(run, rounds=1)
    plain = make(run.data)
    plain.fit = lambda *learners, **options: Run.fit(plain, *learners, **options)  # type: ignore[method-assign]
    assert changed(state_of(find("plain")(plain)), state_of(student)) == set()


def test_network_that_predicts_the_truth_repairs_all_labels_in_one_round(make: Make) -> None:
    run = make(answer=truth, scores=[1, 2, 3])
    student = find("ili")(run, rounds=3)
    clean = run.data.train.clean_labels
    assert int((run.data.train.labels != clean).sum()) > 10
    assert torch.equal(run.trained[0][1].labels, run.data.train.labels)
    assert torch.equal(run.trained[1][1].labels, clean)
    assert torch.equal(run.samples["label"], clean)
    assert [r["label_accuracy"] for r in run.notes["rounds"]] == [1.0, 1.0, 1.0]
    assert run.notes["given_label_accuracy"] == float((run.data.train.labels == clean).float().mean())
    assert run.notes["rounds"][0]["changed"] == int((run.data.train.labels != clean).sum())
    assert student is run.trained[2][0]
    assert len({model for model, _ in run.trained}) == 3  # a new network each


def test_threshold_of_one_trains_on_the_given_labels(make: Make) -> None:
    run = make(answer=truth, scores=[1, 2])
    find("ili")(run, rounds=2, threshold=1.0)
    assert all(torch.equal(split.labels, run.data.train.labels) for _, split in run.trained)


def test_samples_below_the_threshold_stay_with_their_current_label(make: Make) -> None:
    def half_confident(split: Split) -> Tensor:
        return truth(split) * (split.index % 2 == 0)[:, None]  # even samples: 1; others: 1/4

    run = make(answer=half_confident, scores=[1, 2])
    find("ili")(run, rounds=2, threshold=0.5)
    train = run.data.train
    expected = train.clean_labels.where(train.index % 2 == 0, train.labels)
    assert torch.equal(run.trained[1][1].labels, expected)
    assert len(run.trained[1][1]) == len(train)
    assert torch.equal(run.samples["confidence"], torch.where(train.index % 2 == 0, 1.0, 0.25))


def test_unlabelled_samples_get_labels_and_verified_labels_do_not_change(make: Make) -> None:
    data = make().data
    labels, trusted = data.train.labels.clone(), torch.zeros(48, dtype=torch.bool)
    labels[::5], trusted[1::5] = -1, True
    data = replace(data, train=replace(data.train, labels=labels, trusted=trusted))
    for partition in (False, True):
        run = make(data, answer=truth, scores=[1])
        find("ili")(run, rounds=1, partition=partition)
        assert torch.equal(run.samples["label"], data.train.clean_labels.where(~trusted, labels))


def test_no_label_is_changed_by_a_network_that_was_trained_on_its_sample(make: Make) -> None:
    run = make(scores=[1, 2, 3])
    student = find("ili")(run, rounds=3, partition=True)
    *fits, (last, whole) = run.trained
    assert len(fits) == len(run.predicted) == 6
    assert len({model for model, _ in run.trained}) == 7
    labels = run.data.train.labels.clone()
    halves = []
    for (model, source), (predicting_model, target) in zip(fits, run.predicted, strict=True):
        assert model is predicting_model
        assert set(source.index.tolist()).isdisjoint(target.index.tolist())
        assert len(source) == len(target) == 24
        # trained on all changes so far: the first half is relabelled after the second one
        assert torch.equal(source.labels, labels[source.index])
        labels[target.index] = Run.predict(run, model, target).argmax(1)
        halves.append(tuple(source.index.tolist()))
    assert halves[0::2] == [halves[0]] * 3  # divided once
    assert halves[1::2] == [halves[1]] * 3
    assert not torch.equal(labels, run.data.train.labels)
    assert torch.equal(whole.labels, labels)
    assert torch.equal(run.samples["label"], labels)
    assert student is last


# --- stopping and restoring


@pytest.mark.parametrize(("restore", "best"), [(True, 2), (False, 4)])
def test_run_stops_after_two_drops_and_returns_the_best_network(make: Make, restore: bool, best: int) -> None:
    run = make(scores=[8, 12, 11, 10, 16, 16])
    student = find("ili")(run, restore=restore)
    assert len(run.trained) == 4
    assert student is run.trained[best - 1][0]
    assert run.notes["best_round"] == best
    assert [r["held_out_accuracy"] for r in run.notes["rounds"]] == [8 / 16, 12 / 16, 11 / 16, 10 / 16]


def test_diverging_halves_train_the_student_on_the_given_labels(make: Make) -> None:
    run = make(answer=wrong, scores=[8, 7, 6])
    find("ili")(run, partition=True)
    assert len(run.trained) == 7
    assert (run.trained[-2][1].labels == 0).all()  # what the rounds have made of the labels
    assert torch.equal(run.trained[-1][1].labels, run.data.train.labels)
    last = make(answer=wrong, scores=[8, 7, 6])
    find("ili")(last, partition=True, restore=False)
    assert (last.trained[-1][1].labels == 0).all()


def test_halves_are_restored_to_the_labels_before_the_best_round(make: Make) -> None:
    run = make(scores=[8, 12, 11, 10])
    find("ili")(run, partition=True)
    assert len(run.trained) == 9
    start = run.data.train.labels.clone()
    for _, source in run.trained[1:3]:
        start[source.index] = source.labels  # what the second round begins with
    assert torch.equal(run.trained[-1][1].labels, start)


def test_without_held_out_samples_all_rounds_are_done_and_the_last_counts(make: Make, tiny_data: Data) -> None:
    run = make(replace(tiny_data, validation=None))
    student = find("ili")(run, rounds=4)
    assert len(run.trained) == 4
    assert student is run.trained[-1][0]
    assert [r["held_out_accuracy"] for r in run.notes["rounds"]] == [None] * 4


# --- what it does on digits


def digits(epochs: int, lr: float, **settings: Any) -> tuple[Run, float]:
    data = open_data("digits")
    data = SymmetricNoise(0.3, 0)(replace(data, views=data.modality.unaugmented)).hold_out(0.2, 0)

    def student() -> Tapped:
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        return Tapped(nn.Sequential(*layers, nn.Linear(256, 10)), *data.mean_std)

    recipe = Recipe(epochs=epochs, batch_size=128, lr=lr, schedule="cosine")
    run = Run(data, student, recipe=recipe, hardware=Hardware(device="cpu", precision="float32", workers=0))
    model = find("ili")(run, **settings)
    return run, float(accuracy(run.predict(model, data.test), data.test.labels))


def test_labels_improve_where_the_network_does_not_memorise_them() -> None:
    run, _ = digits(25, 0.05, rounds=2)
    assert run.notes["given_label_accuracy"] == pytest.approx(0.7, abs=0.03)
    assert run.notes["rounds"][-1]["label_accuracy"] > 0.94


def test_where_the_network_memorises_only_halves_improve_labels() -> None:
    whole, _ = digits(40, 0.2, rounds=1)
    halves, _ = digits(40, 0.2, rounds=2, partition=True)
    assert whole.notes["rounds"][0]["label_accuracy"] < whole.notes["given_label_accuracy"] + 0.03
    assert halves.notes["rounds"][-1]["label_accuracy"] > halves.notes["given_label_accuracy"] + 0.1


def test_diverging_run_is_restored() -> None:
    run, restored = digits(8, 0.005, rounds=4, partition=True)
    _, diverged = digits(8, 0.005, rounds=4, partition=True, restore=False)
    assert run.notes["rounds"][-1]["label_accuracy"] < 0.4
    assert restored > diverged + 0.3


# --- errors


def test_soft_labels_are_refused(soft: Data, make: Make, refused: Any) -> None:
    with refused("ili needs class numbers", "soft"):
        find("ili")(make(soft))


@pytest.mark.parametrize("invalid_settings", [{"rounds": 0}, {"threshold": 1.2}, {"partition": "some"}])
def test_invalid_settings_are_refused(invalid_settings: dict[str, Any], make: Make, refused: Any) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        find("ili")(make(), **invalid_settings)
