"""The method ssal: out-of-fold confusion, groups, gradients, and what is deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.calls import pixels
from tests.runs.test_one import a_batch, gradients
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.ssal import out_of_fold_confusion
from tutelage.models.surgery.heads import Headed
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_metadata
from tutelage.runs import execute, open_model
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

BRIEF = {"width": 2}

Net = Callable[..., Tapped]
SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)


@pytest.fixture
def any_model(tiny_model: Net) -> Callable[[], Tapped]:
    """A tiny network with random weights."""
    return lambda: tiny_model(int(torch.randint(9999, ())))


class RecordingRun(Run):
    """A run that also records the arguments of its fits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[tuple[Learner, Data | None]] = []

    def fit(self, *learners: Learner, data: Data | None = None, **changes: Any) -> FitResult:
        self.calls.append((learners[0], data))
        return super().fit(*learners, data=data, **changes)


def test_fits_and_groups(tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware) -> None:
    run = RecordingRun(tiny_data, any_model, recipe=SHORT, hardware=on_cpu, seed=3)
    find("ssal")(run, folds=3, **BRIEF)
    *folds, (learner, data) = run.calls
    assert data is None
    assert len(folds) == 3
    parts = [set(part.train.index.tolist()) for _, part in folds if part is not None]
    everything = set(tiny_data.train.index.tolist())
    excluded = [everything - part for part in parts]
    assert sorted(i for part in excluded for i in part) == sorted(everything)  # each sample is predicted once
    assert all(part.validation is None for _, part in folds if part is not None)
    # a network of two stages has the last two of three branches, of 2 groups each for 4 classes
    assert list(learner.terms) == ["ce", "groups 1", "groups 2"]
    assert [learner.terms[name].weight for name in ("groups 1", "groups 2")] == [0.59, 0.76]
    table = run.notes["groups"]
    assert len(table) == 2
    assert all(len(row) == 4 and set(row) == {0, 1} for row in table)
    assert 0 <= run.notes["out_of_fold_accuracy"] <= 1


def test_confusion_counts_predictions_for_samples_not_trained_on(
    tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold's network predicts another class for all samples, which shows in the columns."""
    labels = tiny_data.train.labels.clone()
    labels[:4] = -1
    data = replace(tiny_data, train=replace(tiny_data.train, labels=labels))
    run = RecordingRun(data, any_model, recipe=SHORT.replace(epochs=1), hardware=on_cpu)
    predicted: list[Tensor] = []

    def predict(model: Tapped, split: Any) -> Tensor:
        (trained, part) = run.calls[-1]
        assert model is trained.model
        assert part is not None
        assert not set(split.index.tolist()) & set(part.train.index.tolist())
        predicted.append(split.labels)
        return torch.eye(4)[len(predicted) - 1].repeat(len(split), 1)

    monkeypatch.setattr(run, "predict", predict)
    confusion = out_of_fold_confusion(run, 2)
    for number in range(2):
        expected = [int((predicted[number] == label).sum()) for label in range(4)]
        assert confusion[:, number].tolist() == expected
    assert int(confusion.sum()) == len(labels) - 4


def test_branches_train_the_student(tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware) -> None:
    run = RecordingRun(tiny_data, any_model, recipe=SHORT, hardware=on_cpu, seed=3)
    find("ssal")(run, grouping="random", **BRIEF)
    ((learner, _),) = run.calls
    network = learner.model.module
    assert isinstance(network, Headed)
    batch = a_batch(tiny_data)
    outputs = learner.model.train().tap(batch.inputs, learner.roles())
    terms = {name: w.term(outputs, None, batch).mean() for name, w in learner.terms.items()}

    def reached(loss: Tensor, module: nn.Module) -> bool:
        return any(bool(gradient.any()) for gradient in gradients(loss, module))

    first, last, classifier = (network.network.get_submodule(name) for name in ("conv1", "conv2", "fc"))
    branches = [network.get_submodule(f"head.branches.{number}") for number in range(2)]
    assert [reached(terms["ce"], part) for part in (first, last, classifier, *branches)] == [True] * 3 + [False] * 2
    modules = (first, last, classifier, *branches)
    assert [reached(terms["groups 1"], part) for part in modules] == [True, False, False, True, False]
    assert [reached(terms["groups 2"], part) for part in modules] == [True, True, False, False, True]


@pytest.mark.parametrize("grouping", ["similar", "split", "random", "identity"])
def test_training_is_independent_of_deployment(
    grouping: str, tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    runs = [Run(tiny_data, any_model, recipe=SHORT, hardware=on_cpu) for _ in range(2)]
    settings = {"grouping": grouping, **BRIEF}
    alone, whole = (
        find("ssal")(run, deploy=deploy, **settings) for run, deploy in zip(runs, ("network", "joint"), strict=True)
    )
    inputs = pixels(tiny_data)
    within = whole.eval().tap(inputs, ("logits", "network", "branch1", "branch2"))
    assert torch.equal(alone.eval()(inputs), within["network"])
    expected = within["network"].log_softmax(1)
    for number, groups in enumerate(runs[1].notes["groups"], 1):
        expected = expected + 0.3 * within[f"branch{number}"].log_softmax(1)[:, groups]
    torch.testing.assert_close(within["logits"], expected)
    assert list(alone.state_dict()) == list(any_model().state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in alone.modules())
    assert runs[0].notes == runs[1].notes
    assert len(runs[0].fits) == (1 if grouping in ("random", "identity") else 3)
    assert (runs[0].notes["groups"] == [[0, 1, 2, 3]] * 2) == (grouping == "identity")
    assert tiny_data.validation is not None
    for run, model in zip(runs, (alone, whole), strict=True):  # what is deployed is what is selected
        record = run.fits[-1].history[-1]["learners"]["student"]
        share = float(accuracy(run.predict(model, tiny_data.validation), tiny_data.validation.labels))
        assert record["validation_accuracy"] == pytest.approx(share)
        assert list(run.selected) == [model]


def test_branches_and_network_learn(tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware) -> None:
    run = Run(tiny_data, any_model, recipe=Recipe(epochs=25, batch_size=16, lr=0.05), hardware=on_cpu)
    whole = find("ssal")(run, grouping="identity", width=8)
    labels = tiny_data.test.labels
    shares = {
        role: float(accuracy(run.predict(whole, tiny_data.test, (role,)), labels))
        for role in ("network", "branch1", "branch2", "logits")
    }
    assert min(shares.values()) > 0.5, shares


def test_joint_prediction_can_be_saved_and_opened(tiny_npz: str, tiny_data: Data, tmp_path: Path) -> None:
    config = Config(
        data=tiny_npz, student="resnet8x0.25", method="ssal", settings=BRIEF, epochs=1, batch_size=16, device="cpu"
    )
    result = execute(config, tmp_path / "run")
    (operation,) = read_metadata(tmp_path / "run" / "student.safetensors")["surgery"]
    table = result.metrics["notes"]["groups"]
    assert operation["groups"] == [group for row in table for group in row]
    assert operation["layers"] == ["layer1", "layer2", "layer3"]
    for model in (open_model(str(tmp_path / "run"), tiny_data), execute(config, tmp_path / "run").model):
        assert torch.equal(model.eval()(pixels(tiny_data)), result.model.eval()(pixels(tiny_data)))


# --- errors


def test_a_network_without_feature_maps_is_refused(tiny_data: Data, refused: Any) -> None:
    def flat() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)))

    with refused("ssal reads feature maps", "Sequential has none", "roles="):
        find("ssal")(Run(tiny_data, flat))


def test_too_few_samples_for_the_folds_are_refused(
    tiny_data: Data, any_model: Callable[[], Tapped], refused: Any
) -> None:
    with refused("training samples, too few for 50 folds"):
        find("ssal")(Run(tiny_data, any_model), folds=50)


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": [0.2, 0.5]},
        {"groups": [], "weights": []},
        {"groups": [0.2, 0.5, 2]},
        {"groups": [0, 0.5, 1]},
        {"grouping": "best"},
        {"gamma": -1},
        {"folds": 1},
        {"deploy": "branch"},
    ],
)
def test_invalid_settings_are_refused(
    wrong: dict[str, Any], tiny_data: Data, any_model: Callable[[], Tapped], refused: Any
) -> None:
    with refused(next(iter(wrong))):
        find("ssal")(Run(tiny_data, any_model), **wrong)
