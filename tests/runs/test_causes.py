"""The method causes: what each kind of outputs does on noise, its operations, and its weights file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.nets import mlp
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.methods import find
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate
from tutelage.training import Run

BRIEF = {"outputs": "background", "unit_norm": "feature"}  # for the conformance tests


@pytest.fixture
def run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Run:
    return Run(tiny_data, lambda: tiny_model(2), recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu, seed=3)


def test_softmax_without_normalisation_is_plain(run: Run, tiny_data: Data, changed: Any, state_of: Any) -> None:
    student = find("causes")(run, outputs="softmax")
    plain = find("plain")(Run(tiny_data, run._student, recipe=run.recipe, hardware=run.hardware, seed=3))
    assert changed(state_of(student), state_of(plain)) == set()


@pytest.mark.parametrize(
    ("settings", "operations", "terms"),
    [
        ({"outputs": "sigmoid"}, [], {"bce"}),
        ({"outputs": "squares"}, [], {"mse"}),
        ({"outputs": "background", "unit_norm": "all"}, ["unit_norm", "abstain"], {"ce", "noise"}),
        ({"outputs": "softmax", "unit_norm": "input"}, ["unit_norm"], {"ce"}),
    ],
)
def test_terms_and_operations(settings: dict[str, str], operations: list[str], terms: set[str], run: Run) -> None:
    student = find("causes")(run, **settings)
    assert [operation["operation"] for operation in applied_operations(student.module)] == operations
    assert {*run.fits[0].history[0]["learners"]["student"]} >= terms


@pytest.mark.parametrize("settings", [{"outputs": "background"}, {"unit_norm": "feature"}, {"unit_norm": "all"}])
def test_student_can_be_saved_and_loaded(settings: dict[str, str], tiny_npz: str, tmp_path: Path) -> None:
    config = Config(data=tiny_npz, student="resnet8x0.25", method="causes", epochs=1, batch_size=16, device="cpu")
    config = config.replace(validation=0, precision="float32", channels_last=False, workers=0, settings=settings)
    result = execute(config, tmp_path / "run")
    images = torch.rand(5, 1, 8, 8)
    opened_model = open_model(str(tmp_path / "run"), open_data(tiny_npz))
    assert torch.equal(opened_model.eval()(images), result.model.eval()(images))


def test_a_background_class_takes_noise_away_from_the_classes(on_cpu: Hardware) -> None:
    digits = open_data("digits")
    digits = replace(digits, views=digits.modality.unaugmented)
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def train(**settings: Any) -> Tapped:
        recipe = Recipe(epochs=12, batch_size=64, lr=0.05)
        student = Run(digits, lambda: Tapped(mlp(10, 64, 32), *digits.mean_std), recipe=recipe, hardware=on_cpu)
        model = find("causes")(student, **settings)
        assert evaluate(model, digits)["accuracy"] > 0.9
        return model

    softmax = train(outputs="softmax")(noise).softmax(1).amax(1)
    outputs = train(outputs="background").tap(noise, ("logits", "abstain"))
    background = torch.cat([outputs["logits"], outputs["abstain"]], 1).softmax(1)
    assert softmax.mean() > 0.3
    assert background[:, -1].mean() > 0.95
    without = train(outputs="background", background=0.0).tap(noise, ("logits", "abstain"))
    assert torch.cat([without["logits"], without["abstain"]], 1).softmax(1)[:, -1].mean() < 0.5


@pytest.mark.parametrize("settings", [{"outputs": "tanh"}, {"unit_norm": "output"}, {"background": -1}])
def test_invalid_settings_are_refused(settings: dict[str, Any], run: Run, refused: Any) -> None:
    ((name, value),) = settings.items()
    with refused(name, value):
        find("causes")(run, **settings)
