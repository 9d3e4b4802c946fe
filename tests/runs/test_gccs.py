"""The method gccs: convergence of outputs, the weights file, batches, and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.data.configured import load_data
from tutelage.errors import TutelageWarning
from tutelage.evaluation import accuracy, ece, nll, predict
from tutelage.evaluation.temperature import fitted_temperature
from tutelage.methods import find
from tutelage.methods.gccs.surgery.simplex import VERTICES
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate
from tutelage.training import Run

Net = Callable[..., Tapped]


def test_outputs_converge_to_vertices(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(epochs=40, batch_size=48, lr=0.05)
    run = Run(tiny_data, lambda: tiny_model(2, width=8), recipe=recipe, hardware=on_cpu)
    model = find("gccs")(run, scale=10).eval()
    assert applied_operations(model.module) == [{"operation": "simplex", "scale": 10.0}]
    images = tiny_data.train.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    outputs = model.tap(images, ("logits", VERTICES))
    labels = tiny_data.train.labels
    means = torch.stack([outputs[VERTICES][labels == label].mean(0) for label in range(4)])
    assert (means - 10 * torch.eye(4)).norm(dim=1).max() < 4
    temperature = run.notes["temperature"]
    torch.testing.assert_close(outputs["logits"], outputs[VERTICES] / 10 / temperature)
    assert evaluate(model, tiny_data)["accuracy"] > 0.7
    losses = [record["learners"]["student"]["gccs"] for record in run.fits[0].history]
    assert losses[-1] < 0.2 * losses[0]


def test_clip_of_recipe_has_precedence(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, changed: Any) -> None:
    states = []
    for clip in (None, 20.0, 1e-3):
        run = Run(tiny_data, lambda: tiny_model(2), recipe=Recipe(epochs=1, batch_size=16, clip=clip), hardware=on_cpu)
        states.append(find("gccs")(run).module.state_dict())
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


def test_confidences_are_calibrated_by_the_held_out_split(on_cpu: Hardware) -> None:
    """At the vertices the published loss leaves probabilities of 0.23; the fitted temperature makes them usable."""
    data = load_data(Config(data="digits", augment=False, validation=0.15))
    assert data.validation is not None

    def student() -> Tapped:
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
        return Tapped(nn.Sequential(hidden, nn.Linear(128, 10)), *data.mean_std)

    run = Run(data, student, recipe=Recipe(epochs=30, batch_size=160, lr=0.05, warmup=1), hardware=on_cpu)
    model = find("gccs")(run)
    labels, logits = data.test.labels, predict(model, data.test, device="cpu")
    uncalibrated = run.notes["temperature"] * logits
    assert uncalibrated.softmax(1).amax(1).median() < 0.3
    assert torch.equal(logits.argmax(1), uncalibrated.argmax(1))
    assert accuracy(logits, labels) > 0.95
    before, after = ([float(f(z, labels)) for f in (nll, ece)] for z in (uncalibrated, logits))
    assert before[0] > 1.4
    assert after[0] < 0.25
    assert before[1] > 0.7
    assert after[1] < 0.03
    held_out = predict(model, data.validation, device="cpu")
    assert fitted_temperature(held_out, data.validation.labels) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_without_held_out_labels_the_temperature_stays_1(
    unlabelled: bool, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    held_out = tiny_data.validation
    assert held_out is not None
    none = replace(held_out, labels=torch.full_like(held_out.labels, -1)) if unlabelled else None
    data = replace(tiny_data, validation=none)
    run = Run(data, lambda: tiny_model(2), recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    with pytest.warns(TutelageWarning, match="hold out a part of the training split"):
        model = find("gccs")(run)
    assert model.module.state_dict()["fc.decision.temperature"] == 1
    assert "temperature" not in run.notes


def test_student_can_be_saved_and_loaded(tiny_npz: str, tmp_path: Path) -> None:
    config = Config(data=tiny_npz, student="resnet8x0.25", method="gccs", epochs=1, batch_size=16, device="cpu")
    config = config.replace(validation=0, precision="float32", channels_last=False, workers=0)
    result = execute(config, tmp_path / "run")
    images = torch.rand(5, 1, 8, 8)
    from tutelage.data import open_data

    opened_model = open_model(str(tmp_path / "run"), open_data(tiny_npz))
    assert torch.equal(opened_model.eval()(images), result.model.eval()(images))
    temperature = opened_model.module.state_dict()["fc.decision.temperature"]
    assert float(temperature) == pytest.approx(result.metrics["notes"]["temperature"])
    assert temperature != 1
    assert torch.equal(execute(config, tmp_path / "run").model.eval()(images), opened_model(images))


def test_too_small_batches_are_refused(tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    with refused("a batch of 11 holds 2 samples of each of 4 classes", "use a batch size of 12 or more"):
        find("gccs")(Run(tiny_data, tiny_model, recipe=Recipe(batch_size=11)))


@pytest.mark.parametrize("settings", [{"scale": 0}, {"tail": -1}, {"full": "maybe"}])
def test_invalid_settings_are_refused(settings: dict[str, Any], tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    ((name, value),) = settings.items()
    with refused(name, value):
        find("gccs")(Run(tiny_data, tiny_model), **settings)
