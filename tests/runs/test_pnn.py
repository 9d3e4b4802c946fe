"""The method pnn: its exemplars, joint training, the weights file, rejection, and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.nets import mlp
from tutelage.attacks import PGD, Accepted, Rejecting
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.methods import find
from tutelage.methods.pnn import exemplar_rows
from tutelage.methods.pnn.scores import leave_one_out_log_scores
from tutelage.methods.pnn.surgery.pnn import head_of
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate
from tutelage.training import Run

BRIEF = {"joint": True, "per_class": 5}  # for the conformance tests

Make = Callable[..., Run]


@pytest.fixture
def run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Make:
    def make(data: Data = tiny_data, **options: Any) -> Run:
        recipe = Recipe(**({"epochs": 2, "batch_size": 16, "lr": 0.05} | options))
        return Run(data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, seed=3)

    return make


@pytest.mark.parametrize("joint", [False, True])
def test_exemplars_are_the_embeddings_of_training_samples(joint: bool, run: Make, tiny_data: Data) -> None:
    training = run()
    model = find("pnn")(training, joint=joint, per_class=7)
    head, rows = head_of(model.module), exemplar_rows(training, 7)
    assert rows.shape == (4, 7)
    assert applied_operations(model.module) == [{"operation": "pnn", "per_class": 7}]
    for label in range(4):
        assert (tiny_data.train.labels[rows[label]] == label).all()
        embeddings = training.predict(model, tiny_data.train.subset(rows[label]), ("embedding",))
        torch.testing.assert_close(head.exemplars[label], embeddings)  # of the final network, not of an earlier one
    scores = leave_one_out_log_scores(head.exemplars, head.present, float(head.sigma))
    assert int((scores.amax(1) < head.threshold).sum()) == 1  # of 28: the 1 % quantile is above the smallest
    assert training.notes == {"sigma": float(head.sigma), "threshold": float(head.threshold)}


def test_the_embedding_is_that_of_plain_training_unless_joint(run: Make, tiny_data: Data) -> None:
    embeddings = [
        training.predict(find(name)(training, **settings), tiny_data.test, ("embedding",))
        for name, settings in (("plain", {}), ("pnn", {}), ("pnn", {"joint": True}))
        for training in [run()]
    ]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.allclose(embeddings[0], embeddings[2])


def test_classes_with_fewer_samples_have_fewer_exemplars(run: Make, tiny_data: Data) -> None:
    labels = tiny_data.train.labels.clone()
    labels[labels == 3] = -1
    labels[3] = 3
    few = replace(tiny_data, train=replace(tiny_data.train, labels=labels))
    head = head_of(find("pnn")(run(few)).module)
    assert head.present.sum(1).tolist() == [12, 12, 12, 1]
    assert find("pnn")(run(few), joint=True)(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_a_class_without_samples_is_refused(run: Make, tiny_data: Data, refused: Any) -> None:
    labels = tiny_data.train.labels.clone()
    labels[labels == 3] = 0
    with refused("class 'd' has no training sample"):
        find("pnn")(run(replace(tiny_data, train=replace(tiny_data.train, labels=labels))))


def test_student_can_be_saved_and_loaded(tiny_npz: str, tmp_path: Path) -> None:
    config = Config(data=tiny_npz, student="resnet8x0.25", method="pnn", epochs=1, batch_size=16, device="cpu")
    config = config.replace(validation=0, precision="float32", channels_last=False, workers=0)
    result = execute(config, tmp_path / "run")
    images = torch.rand(5, 1, 8, 8)
    opened_model = open_model(str(tmp_path / "run"), open_data(tiny_npz))
    assert torch.equal(opened_model.eval()(images), result.model.eval()(images))
    assert 0 <= result.metrics["test"]["rejected"] <= 1
    assert 0 < result.metrics["test"]["parzen_confidence"] <= 1


@pytest.mark.parametrize("joint", [False, True])
def test_digits_are_recognised_and_noise_is_rejected(joint: bool, on_cpu: Hardware) -> None:
    """High accuracy, rejected noise; and no defence: an attack that knows of the rejection succeeds."""
    digits = open_data("digits")
    digits = replace(digits, views=digits.modality.unaugmented)
    recipe = Recipe(epochs=8, batch_size=64, lr=0.05)
    training = Run(digits, lambda: Tapped(mlp(10, 64, 32), *digits.mean_std), recipe=recipe, hardware=on_cpu)
    model = find("pnn")(training, joint=joint, per_class=40)
    result = evaluate(model, digits)
    assert result["accuracy"] > 0.9
    assert result["rejected"] < 0.15
    assert result["accepted_accuracy"] > result["accuracy"] - 0.001
    rejecting = Rejecting(model, head_of(model.module).threshold)
    noise = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float((rejecting(noise).argmax(1) == 10).float().mean()) > 0.6
    images, labels = digits.test.inputs[:40].permute(0, 3, 1, 2) / 255, digits.test.labels[:40]  # type: ignore[union-attr]
    attack = PGD(radius=0.3, steps=30, loss="margin", criterion=Accepted())
    attacked = attack(rejecting, images, labels, torch.Generator().manual_seed(0))
    assert float(Accepted().success(rejecting(attacked), labels).float().mean()) > 0.9


@pytest.mark.parametrize("settings", [{"per_class": 0}, {"background": -1}])
def test_invalid_settings_are_refused(settings: dict[str, Any], run: Make, refused: Any) -> None:
    ((name, value),) = settings.items()
    with refused(name, value):
        find("pnn")(run(), **settings)
