"""The method dlad: clients, confidences, and the student's training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, Quantities, Split, Vectors, open_data
from tutelage.data.orders import class_balanced
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.dlad import shared_samples
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, execute
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)
BRIEF = {"clients": 2}  # for the conformance tests


class RecordingRun(Run):
    """Records what each network is trained on, its state after training, and its predictions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trained: list[tuple[Tapped, Data, dict[str, Any], dict[str, Tensor]]] = []
        self.predicted: list[tuple[Tapped, Tensor, Tensor]] = []

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> FitResult:
        assert data is not None
        result = super().fit(*learners, data=data, **options)
        (learner,) = learners
        state = {name: value.clone() for name, value in learner.model.state_dict().items()}
        self.trained.append((learner.model, data, options, state))
        return result

    def predict(self, model: Tapped, split: Split, roles: Any = ("logits",)) -> Tensor:
        logits = super().predict(model, split, roles)
        self.predicted.append((model, split.index, logits))
        return logits


@pytest.fixture
def recording_run(tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware) -> Callable[..., RecordingRun]:
    def make(data: Data = tiny_data, **options: Any) -> RecordingRun:
        return RecordingRun(data, any_model, **({"recipe": RECIPE, "hardware": on_cpu, "seed": 3} | options))

    return make


# --- the shared samples


def test_samples_without_a_label_are_the_shared_ones(partly_labelled: Data) -> None:
    shared, private = shared_samples(partly_labelled, 0.1, 0)
    assert torch.equal(shared, torch.arange(8, 48))
    assert torch.equal(private, torch.arange(8))


def test_share_of_each_class_is_shared_if_all_are_labelled(tiny_data: Data) -> None:
    shared, private = shared_samples(tiny_data, 0.25, 0)
    assert tiny_data.train.labels[shared].bincount().tolist() == [3] * 4
    assert torch.equal(torch.cat([shared, private]).sort().values, torch.arange(48))
    assert not torch.equal(shared, shared_samples(tiny_data, 0.25, 1)[0])


def test_data_without_private_samples_are_refused(tiny_data: Data, refused: Any) -> None:
    train = replace(tiny_data.train, labels=torch.full((48,), -1))
    with refused("0 would be private", "add samples"):
        shared_samples(replace(tiny_data, train=train), 0.5, 0)


# --- the fits


def test_clients_train_on_their_own_samples_and_the_student_on_the_shared_ones(
    recording_run: Callable[..., RecordingRun], tiny_data: Data
) -> None:
    run = recording_run()
    student = find("dlad")(run, clients=4, confidence_epochs=0.5)
    shared, private = shared_samples(tiny_data, 0.5, 3)
    *fits, (last, data, options, _) = run.trained
    assert len(run.trained) == 2 * 4 + 1
    assert len({model for model, *_ in run.trained}) == 9
    used: list[int] = []
    for (_, own, _, _), (_, both, changes, _) in zip(fits[::2], fits[1::2], strict=True):
        assert own.validation is None
        assert both.validation is None
        assert len(own.train.labels.unique()) == 1  # four clients, four classes
        used += own.train.index.tolist()
        origins = dict(zip(both.train.index.tolist(), both.train.labels.tolist(), strict=True))
        assert origins == dict.fromkeys(shared.tolist(), 0) | dict.fromkeys(own.train.index.tolist(), 1)
        assert changes == {"order": class_balanced, "epochs": 1}
    assert sorted(used) == private.tolist()
    assert last is student
    assert options == {}
    assert torch.equal(data.train.index, shared)
    assert data.validation is tiny_data.validation
    assert all(torch.equal(index, shared) for _, index, _ in run.predicted)


def test_targets_are_the_weighted_predictions(recording_run: Callable[..., RecordingRun]) -> None:
    run = recording_run()
    find("dlad")(run, clients=2, weights="confidence")
    logits = [logits for *_, logits in run.predicted]
    predictions = torch.stack([f.softmax(1) for f in logits[::2]])
    confidences = torch.stack([z[:, :2].softmax(1)[:, 1] for z in logits[1::2]])
    targets = run.trained[-1][1].train.labels
    expected = (confidences[:, :, None] * predictions).sum(0) / confidences.sum(0)[:, None]
    torch.testing.assert_close(targets, expected)
    assert run.notes["confidence"] == pytest.approx(float(confidences.sum(0).mean()))
    right = targets.argmax(1) == run.trained[-1][1].train.clean_labels
    assert run.notes["target_accuracy"] == pytest.approx(float(right.float().mean()))
    assert torch.tensor(run.notes["clients"]).sum(0).tolist() == [6] * 4


def test_labels_of_shared_samples_are_not_read(
    recording_run: Callable[..., RecordingRun], tiny_data: Data, state_of: Any, changed: Any
) -> None:
    shared, _ = shared_samples(tiny_data, 0.5, 3)
    labels = tiny_data.train.labels.clone()
    labels[shared] = -1
    train = replace(tiny_data.train, labels=labels, clean_labels=torch.full_like(labels, -1))
    states = [
        state_of(find("dlad")(recording_run(data), **BRIEF)) for data in (tiny_data, replace(tiny_data, train=train))
    ]
    assert changed(*states) == set()


def test_clients_do_not_change_while_the_student_is_trained(recording_run: Callable[..., RecordingRun]) -> None:
    run = recording_run()
    find("dlad")(run, **BRIEF)
    for model, _, _, state in run.trained:
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("weights", ["probability", "entropy", "uniform"])
def test_weights_without_confidence_need_no_further_fits(
    weights: str, recording_run: Callable[..., RecordingRun]
) -> None:
    run = recording_run()
    find("dlad")(run, clients=4, weights=weights)
    assert len(run.trained) == 5
    assert "confidence" not in run.notes


def test_clients_with_dirichlet_shares(recording_run: Callable[..., RecordingRun]) -> None:
    run = recording_run()
    find("dlad")(run, clients=2, alpha=0.5, weights="odds")
    table = torch.tensor(run.notes["clients"])
    assert table.sum(0).tolist() == [6] * 4
    assert len({*table.flatten().tolist()}) > 2


def test_clients_have_networks_of_other_architectures(recording_run: Callable[..., RecordingRun]) -> None:
    run = recording_run()
    find("dlad")(run, clients=3, networks=["resnet8x0.25", "wrn-10-1"])
    names = [type(model.module).__name__ for model, *_ in run.trained]
    assert names == ["ResNet"] * 2 + ["WRN"] * 2 + ["ResNet"] * 2 + ["TinyNet"]


def test_student_can_be_saved_and_opened(tiny_data: Data, tmp_path: Path) -> None:
    config = Config(student="resnet8x0.25", method="dlad", epochs=1, batch_size=16, settings=BRIEF, device="cpu")
    result = execute(config, tmp_path / "run", overrides=Overrides(data=tiny_data))
    assert set(result.metrics["notes"]) == {"clients", "confidence", "target_accuracy"}
    again = execute(config, tmp_path / "run", overrides=Overrides(data=tiny_data))
    assert again.metrics["test"] == result.metrics["test"]


def test_adaptive_weights_outperform_the_plain_average_on_disjoint_classes(on_cpu: Hardware) -> None:
    data = open_data("digits")

    def student() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), *data.mean_std)

    shares = {}
    for weights in ("uniform", "confidence"):
        run = Run(data, student, recipe=Recipe(epochs=8, batch_size=32, lr=0.1), hardware=on_cpu)
        model = find("dlad")(run, clients=5, weights=weights)
        shares[weights] = float(accuracy(run.predict(model, data.test), data.test.labels))
    assert shares["confidence"] > 0.8, shares
    assert shares["confidence"] > shares["uniform"] + 0.2, shares


# --- errors


def test_other_targets_are_refused(any_model: Callable[[], Tapped], refused: Any) -> None:
    train = Split.of(torch.randn(48, 6), torch.rand(48, 1), Vectors(), Quantities())
    with refused("quantities"):
        find("dlad")(Run(Data("numbers", ("a",), train, train), any_model))


@pytest.mark.parametrize(
    ("wrong", "pieces"),
    [
        ({"classes": 2, "alpha": 0.1}, ("classes=2", "alpha=0.1", "one of the two")),
        ({"classes": 1, "clients": 2}, ("2 clients of 1 classes", "from 2 to 4")),
        ({"clients": 0}, ("clients",)),
        ({"alpha": 0}, ("alpha",)),
        ({"shared": 1}, ("shared",)),
        ({"weights": "best"}, ("weights",)),
        ({"confidence_epochs": 0}, ("confidence_epochs",)),
        ({"networks": ["resnet"]}, ("model",)),
    ],
)
def test_invalid_settings_are_refused(
    wrong: dict[str, Any], pieces: tuple[str, ...], recording_run: Callable[..., RecordingRun], refused: Any
) -> None:
    with refused(*pieces):
        find("dlad")(recording_run(), **wrong)
