"""The two stages of the method mslg, exact resume, and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.conditions import parse_noise
from tutelage.methods import find
from tutelage.methods.mslg import initial_scores
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.processes import Processes

Net = Callable[..., Tapped]


class RecordingRun(Run):
    """A run that records the arguments of its fits."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.fitted: list[tuple[tuple[Learner, ...], dict[str, Any]]] = []

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        self.fitted.append((learners, options))
        return super().fit(*learners, **options)


Make = Callable[..., RecordingRun]


@pytest.fixture
def noisy_data(tiny_data: Data) -> Data:
    """Twelve of 48 labels are wrong, and three samples of each class are trusted."""
    gradients = tiny_data
    for condition in parse_noise("0.4+trusted:3"):
        gradients = condition(gradients)
    return gradients


@pytest.fixture
def make(noisy_data: Data, tiny_model: Net, on_cpu: Hardware) -> Make:
    """``make(data=noisy, epochs=6, **options)``: a run."""

    def run(data: Data = noisy_data, epochs: int = 6, **options: Any) -> RecordingRun:
        recipe = Recipe(epochs=epochs, batch_size=16, lr=0.05)
        return RecordingRun(data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, **options)

    return run


def test_trusted_samples_are_the_meta_set(make: Make, noisy_data: Data) -> None:
    run = make()
    student = find("mslg")(run)
    (first, before), (second, after) = run.fitted
    is_trusted = noisy_data.train.trusted
    assert is_trusted is not None
    assert "data" not in before
    assert (before["epochs"], before["schedule"], after["epochs"]) == (2, "constant", 4)
    assert sorted(after["streams"]["meta"].index.tolist()) == noisy_data.train.index[is_trusted].tolist()
    assert sorted(after["data"].train.index.tolist()) == noisy_data.train.index[~is_trusted].tolist()
    assert after["data"].validation is noisy_data.validation
    assert first[0].model is second[0].model is student
    history = [record["learners"]["student"] for record in run.fits[1].history]
    assert all({"labels", "entropy", "train_accuracy", "validation_accuracy"} <= record.keys() for record in history)
    assert list(run.selected) == [student]
    labels = after["update"].labels
    assert labels is second[0].terms["labels"].term
    initial = initial_scores(after["data"].train.labels, 4, 10)
    torch.testing.assert_close(labels.store.values.sum(1), initial.sum(1))
    assert not torch.equal(labels.store.values, initial)


def test_the_first_stage_is_plain_training(make: Make, state_of: Any, changed: Any, noisy_data: Data) -> None:
    states: list[dict[str, Tensor]] = []
    run = make()
    fit = run.fit

    def recording_fit(*learners: Learner, **options: Any) -> FitResult:
        fit_result = fit(*learners, **options)
        states.append(state_of(learners[0].model))
        return fit_result

    run.fit = recording_fit  # type: ignore[method-assign]
    find("mslg")(run)
    plain = make(epochs=2)
    student = plain.student()
    plain.fit(Learner(student, None, {"ce": CrossEntropy()}), schedule="constant")
    assert changed(states[0], state_of(student)) == set()
    assert changed(states[0], states[1])


@pytest.mark.parametrize("trusted", [True, False])
def test_resumes_exactly_in_second_stage(
    trusted: bool, make: Make, noisy_data: Data, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    data = noisy_data if trusted else replace(noisy_data, train=replace(noisy_data.train, trusted=None))

    class StoppedError(Exception):
        pass

    def stopping(record: Any) -> None:
        if (record["fit"], record["epoch"]) == (1, 2):
            raise StoppedError

    reference_run = make(data)
    student = find("mslg")(reference_run)
    with pytest.raises(StoppedError):
        find("mslg")(make(data, folder=tmp_path, report=stopping))
    second_run = make(data, folder=tmp_path)
    assert changed(state_of(student), state_of(find("mslg")(second_run))) == set()
    labels, second_labels = (run.fitted[1][1]["update"].labels.store.values for run in (reference_run, second_run))
    assert torch.equal(labels, second_labels)


def test_meta_set_without_trusted_samples(make: Make, noisy_data: Data) -> None:
    for trusted in (None, torch.zeros(48, dtype=torch.bool)):
        run = make(replace(noisy_data, train=replace(noisy_data.train, trusted=trusted)))
        find("mslg")(run, meta_share=0.25)
        meta, train_part = run.fitted[1][1]["streams"]["meta"], run.fitted[1][1]["data"].train
        assert meta.labels.bincount().tolist() == [3] * 4
        assert sorted([*meta.index.tolist(), *train_part.index.tolist()]) == list(range(48))


def test_wrong_labels_move_towards_correct_labels(make: Make, noisy_data: Data) -> None:
    run = make(epochs=24)
    find("mslg")(run, warmup_share=0.25)
    train, labels = run.fitted[1][1]["data"].train, run.fitted[1][1]["update"].labels.store.values
    is_wrong = train.corrupted
    change = labels - initial_scores(train.labels, 4, 10)
    towards = change.gather(1, train.clean_labels[:, None]) - change.gather(1, train.labels[:, None])
    assert float(towards[is_wrong].mean()) > 0.1


def test_settings_reach_the_second_stage(make: Make) -> None:
    run = make()
    find("mslg")(run, alpha=0.1, beta=7, gamma=0.5, initial=3, max_step=0.2, warmup_share=0.5)
    (learner,), options = run.fitted[1]
    assert options["epochs"] == 3
    rule = options["update"]
    assert (rule.alpha, rule.beta, rule.max_step) == (0.1, 7, 0.2)
    assert learner.terms["entropy"].at(0.5) == 0.5
    torch.testing.assert_close(rule.labels.store.values.sum(1), torch.full((len(rule.labels.store.values),), 3.0))


@pytest.mark.parametrize("kind", ["soft labels", "some without a label"])
def test_soft_and_missing_labels(kind: str, make: Make, noisy_data: Data, soft: Data) -> None:
    data = soft
    if kind == "some without a label":
        labels = noisy_data.train.labels.clone()
        labels[::3] = -1
        data = replace(noisy_data, train=replace(noisy_data.train, labels=labels, trusted=None))
    run = make(data, epochs=3)
    find("mslg")(run)
    meta = run.fitted[1][1]["streams"]["meta"].labels
    assert sorted((meta if meta.ndim == 1 else meta.argmax(1)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("trusted", ["all", "none with a label"])
def test_invalid_meta_set_is_refused(trusted: str, make: Make, noisy_data: Data, refused: Any) -> None:
    all_trusted = torch.ones(48, dtype=torch.bool)
    train = replace(noisy_data.train, trusted=all_trusted)
    if trusted != "all":
        train = replace(noisy_data.train, trusted=None, labels=torch.full((48,), -1))
    with refused("meta set is", "of the 48 training samples", "add samples"):
        find("mslg")(make(replace(noisy_data, train=train)))


def test_several_processes_are_refused(make: Make, refused: Any) -> None:
    with refused("2 processes", "use one process"):
        find("mslg")(make(processes=Processes(0, 2)))
