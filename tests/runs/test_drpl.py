"""The method drpl: its phases, what it hands on, and that it finds the labels that small losses miss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, PairFlip, open_data
from tutelage.methods import find
from tutelage.methods.drpl.labels import AveragedLabels, PseudoLabels
from tutelage.methods.drpl.phases import labelled_set, losses_on_labels, noise_probabilities, one_hot
from tutelage.models.tapped import Tapped
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.updates import UpdateRule, together

BRIEF = {"start": "random"}  # for the conformance tests: the first batch of the warm-up is mixed


class Watched(Run):
    """Records the arguments of each fit, and the soft labels after each epoch but the last."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[Tapped, Data, UpdateRule, dict[str, Any]]] = []
        self.labels: list[list[Tensor]] = []

    def fit(
        self, *learners: Learner, data: Data | None = None, update: UpdateRule = together, **changes: Any
    ) -> FitResult:
        assert data is not None
        self.calls.append((learners[0].model, data, update, changes))
        epochs: list[Tensor] = []
        self.labels.append(epochs)

        def until(history: Any) -> bool:
            if isinstance(update, AveragedLabels | PseudoLabels):
                epochs.append(update.labels.values.clone())
            return False

        return super().fit(*learners, data=data, update=update, until=until, **changes)


@pytest.fixture
def watched(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Watched]:
    def go(data: Data = tiny_data, epochs: int = 6, **settings: Any) -> Watched:
        recipe = Recipe(epochs=epochs, batch_size=8, lr=0.1)
        student = lambda: tiny_model(int(torch.randint(9999, ())))  # noqa: E731
        run = Watched(data, student, recipe=recipe, hardware=on_cpu, seed=2)
        find("drpl")(run, **{"relabelling": 1.0, "warmup": 0.4, "detection": 1.0, **settings})
        return run

    return go


@pytest.fixture
def noisy(tiny_data: Data) -> Data:
    labels = tiny_data.train.labels.clone()
    labels[:8] = (labels[:8] + 1) % 4
    return replace(tiny_data, train=replace(tiny_data.train, labels=labels))


def test_five_fits_with_the_schedules_of_the_phases(watched: Callable[..., Watched], noisy: Data) -> None:
    run = watched(noisy, relabelling=0.5, warmup=1 / 3, detection=2 / 3)
    assert [call[3]["epochs"] for call in run.calls] == [3, 2, 4, 2, 6]
    schedules = [call[3].get("milestones", call[3]["schedule"]) for call in run.calls]
    assert schedules == [(75 / 130, 110 / 130), "constant", (100 / 175, 150 / 175), "constant", (0.5, 0.75)]
    models = [call[0] for call in run.calls]
    assert models[1] is models[2]
    assert models[3] is models[4]
    assert len({*models}) == 3
    assert [call[1].validation is None for call in run.calls] == [True, True, True, True, False]


def test_student_has_the_initial_weights_of_other_methods(watched: Callable[..., Watched]) -> None:
    first = watched(epochs=1).student()
    again = watched(epochs=1).calls[-1][0]
    assert first.module.state_dict().keys() == again.module.state_dict().keys()
    run = watched(epochs=1, start="random")
    fresh = run.student()
    before = {name: value.clone() for name, value in fresh.module.state_dict().items()}
    assert all(torch.equal(before[name], value) for name, value in first.module.state_dict().items())


def test_only_labels_that_look_clean_are_used(watched: Callable[..., Watched], noisy: Data) -> None:
    run = watched(noisy)
    given = one_hot(noisy.train.labels, 4)
    for warmup, fit, name, threshold in ((1, 2, "noisy_phase1", 0.1), (3, 4, "noisy", 0.5)):
        clean = labelled_set(run.samples[name], noisy.train.labels, threshold)
        assert 0 < int(clean.sum()) < 48
        split = run.calls[warmup][1].train
        assert torch.equal(split.index, noisy.train.index[clean])
        assert torch.equal(split.labels, given[clean])
        initial = run.calls[fit][1].train.labels
        assert torch.equal(initial[clean], given[clean])
        assert torch.allclose(initial.sum(1), torch.ones(48))
        for labels in run.labels[fit]:
            assert torch.equal(labels[clean], given[clean])
            uniform = (labels == 0.25).all(1)
            assert int(uniform.sum()) == int(0.2 * int((~clean).sum()))
    assert run.notes["labelled"] == int(clean.sum())


def test_labels_change_from_the_start_of_relabelling_on(watched: Callable[..., Watched], noisy: Data) -> None:
    run = watched(noisy, relabel_from=0.5)
    changed = [not torch.equal(labels, one_hot(noisy.train.labels, 4)) for labels in run.labels[0]]
    assert changed == [False, False, True, True, True]
    assert torch.allclose(run.labels[0][-1].sum(1), torch.ones(48), atol=1e-5)


def test_losses_and_probabilities_are_those_of_the_networks(watched: Callable[..., Watched], noisy: Data) -> None:
    run = watched(noisy)
    for number, phase in ((0, 1), (2, 2)):
        losses = losses_on_labels(run, run.calls[number][0], noisy.train)
        assert torch.allclose(losses, run.samples[f"loss_phase{phase}"], atol=1e-6)
    assert torch.equal(noise_probabilities(run.samples["loss_phase2"], noisy.train), run.samples["noisy"])


def test_random_start_has_no_warmup(watched: Callable[..., Watched], noisy: Data) -> None:
    run = watched(noisy, start="random")
    assert [call[2] is together for call in run.calls] == [False, False, False]
    clean = labelled_set(run.samples["noisy"], noisy.train.labels, 0.5)
    pseudo = run.calls[2][1].train.labels[~clean]
    assert ((pseudo == 1).sum(1) == 1).all()


def test_missing_and_verified_labels(watched: Callable[..., Watched], noisy: Data) -> None:
    labels = noisy.train.labels.clone()
    labels[40:] = -1
    trusted = torch.zeros(48, dtype=torch.bool)
    trusted[:8] = True
    run = watched(replace(noisy, train=replace(noisy.train, labels=labels, trusted=trusted)))
    assert (run.samples["noisy"][40:] == 1).all()
    assert (run.samples["noisy"][:8] == 0).all()
    assert run.samples["loss_phase1"][40:].isnan().all()
    assert {*range(8)} <= {*run.calls[3][1].train.index.tolist()} <= {*range(40)}


@pytest.mark.parametrize("stop", [3, 9, 20])
def test_interrupted_run_resumes_exactly(
    stop: int,
    noisy: Data,
    tiny_model: Callable[..., Tapped],
    on_cpu: Hardware,
    tmp_path: Path,
    state_of: Any,
    changed: Any,
) -> None:
    """It is stopped while labels are averaged, after a warm-up, and with pseudo-labels of the last step."""

    def go(folder: Path, stop: int | None) -> tuple[Any, dict[str, Tensor]]:
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise InterruptedError

        student = lambda: tiny_model(int(torch.randint(9999, ())), dropout=0.2)  # noqa: E731
        recipe = Recipe(epochs=6, batch_size=8, lr=0.1)
        run = Run(noisy, student, recipe=recipe, hardware=on_cpu, seed=2, folder=folder, report=report)
        model = find("drpl")(run, relabelling=1.0, warmup=0.34, detection=0.67, relabel_from=0.3)
        return state_of(model), run.samples

    whole, samples = go(tmp_path / "whole", None)
    with pytest.raises(InterruptedError):
        go(tmp_path / "stopped", stop)
    resumed, same = go(tmp_path / "stopped", None)
    assert changed(whole, resumed) == set()
    assert all(torch.equal(samples[name], same[name]) for name in samples)


def test_each_class_has_a_label() -> None:
    noisy = torch.tensor([0.9, 0.8, 0.05, 0.2, 1.0])
    assert labelled_set(noisy, torch.tensor([0, 0, 1, 1, -1]), 0.1).tolist() == [False, True, True, False, False]


def test_soft_labels_are_refused(watched: Callable[..., Watched], tiny_data: Data, refused: Any) -> None:
    soft = one_hot(tiny_data.train.labels, 4)
    with refused("drpl needs class numbers", "argmax"):
        watched(replace(tiny_data, train=replace(tiny_data.train, labels=soft)))


def test_wrong_labels_are_found_that_the_loss_of_a_plain_network_hides(on_cpu: Hardware) -> None:
    digits = replace(open_data("digits"), views=CropsAndFlips())
    digits = replace(digits, train=digits.train.subset(torch.arange(700)))
    data = PairFlip(0.35, 1)(digits)

    def trained(name: str, **settings: Any) -> tuple[Run, Tapped]:
        net = lambda: nn.Sequential(  # noqa: E731
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )
        recipe = Recipe(epochs=20, batch_size=64, lr=0.1, nesterov=False, weight_decay=1e-4)
        run = Run(data, lambda: Tapped(net(), *data.mean_std), recipe=recipe, hardware=on_cpu, seed=1)
        return run, find(name)(run, **settings)

    def auc(losses: Tensor) -> float:
        return float(roc_auc_score(data.train.corrupted.numpy(), losses.numpy()))

    run, plain = trained("plain")
    small_loss = auc(losses_on_labels(run, plain, data.train))
    plain_accuracy = float((run.predict(plain, data.test).argmax(1) == data.test.labels).float().mean())
    run, student = trained("drpl", relabelling=0.8, warmup=0.16, detection=0.8, relabel_from=0.4)
    assert auc(run.samples["loss_phase1"]) > small_loss + 0.1
    assert auc(run.samples["noisy"]) > small_loss + 0.1
    accuracy = float((run.predict(student, data.test).argmax(1) == data.test.labels).float().mean())
    assert accuracy > plain_accuracy + 0.1
    wrong = data.train.corrupted[run.samples["noisy"] <= 0.5].float().mean()
    assert wrong < 0.5 * data.train.noise_rate
