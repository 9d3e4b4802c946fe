"""The method lq_vae: what its fits train, its result, its file, and that it does its job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.attacks import PGD
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, open_data
from tutelage.methods import find
from tutelage.methods.lq_vae.fronts.lq_filter import filter_of
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.training import Run

Net = Callable[..., Tapped]
BRIEF = {"latent": 4, "width": 0.05}


def test_the_classifier_is_that_of_plain_training_and_the_filter_trains_behind_it(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: Any
) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), recipe=short, hardware=on_cpu, seed=3)
    student = find("lq_vae")(run, **BRIEF)
    plain = find("plain")(Run(tiny_data, lambda: tiny_model(2), recipe=short, hardware=on_cpu, seed=3))
    after = state_of(student)
    assert all(torch.equal(value, after[name]) for name, value in state_of(plain).items())
    assert len(run.fits) == 2
    record = run.fits[1].history[-1]["learners"]
    assert {name: set(values) for name, values in record.items()} == {
        "E": {"divergence", "reconstruction", "gradient"},
        "G_c": {"reconstruction"},
        "G_d": {"reconstruction"},
    }
    assert 0 <= run.notes["positive_bits"] <= 1
    assert 0 <= run.notes["bit_entropy"] <= 1


def test_without_a_fit_the_classifier_stays_as_it_is(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: Any
) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), recipe=short, hardware=on_cpu)
    student = find("lq_vae")(run, train_classifier=False, **BRIEF)
    after = state_of(student)
    assert all(torch.equal(value, after[name]) for name, value in state_of(tiny_model(2)).items())
    assert len(run.fits) == 1


def test_without_the_penalty_there_is_no_gradient_term(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), recipe=short, hardware=on_cpu)
    find("lq_vae")(run, penalty=0.0, train_classifier=False, **BRIEF)
    assert set(run.fits[0].history[-1]["learners"]["E"]) == {"divergence", "reconstruction"}


def test_the_updates_follow_the_order_of_the_authors(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E, G_c, G_d on each batch."""
    from tutelage.training.updates import Step

    updated: list[str] = []
    original = Step.update

    def update(self: Step, learner: Any, loss: torch.Tensor) -> None:
        updated.append(learner.name)
        original(self, learner, loss)

    monkeypatch.setattr(Step, "update", update)
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    run = Run(tiny_data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu)
    find("lq_vae")(run, train_classifier=False, **BRIEF)
    assert updated == ["E", "G_c", "G_d"] * 3


def test_the_result_is_saved_as_one_network(tiny_npz: str, tmp_path: Path) -> None:
    config = Config(
        data=tiny_npz, student="resnet8x0.25", method="lq_vae", settings=BRIEF, epochs=1, batch_size=16, device="cpu",
        precision="float32", channels_last=False, workers=0,
    )  # fmt: skip
    result = execute(config, tmp_path / "run")
    opened = open_model(str(tmp_path / "run"), open_data(tiny_npz))
    assert [operation["kind"] for operation in applied_operations(opened.module)] == ["lq_filter"]
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(opened(images), result.model.eval()(images))


@pytest.mark.parametrize("shape", [(8,), (4, 2)])
def test_vectors_are_refused_before_the_first_fit(shape: Any, on_cpu: Hardware, refused: Any) -> None:
    from torch import nn

    from tutelage.data import Split
    from tutelage.data.modality import Vectors

    vectors = Split.of(torch.rand(16, *shape), torch.arange(16) % 2, modality=Vectors())
    data = Data("vectors", ("a", "b"), vectors, vectors, vectors, Vectors.unaugmented)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    run = Run(data, lambda: Tapped(network), recipe=Recipe(epochs=1), hardware=on_cpu)
    with refused("vectors", "image"):
        find("lq_vae")(run)
    assert run.fits == []


def test_it_filters_perturbations_that_do_not_know_it_and_yields_to_those_that_do(on_cpu: Hardware) -> None:
    """Digits, one seed: clean accuracy is kept, grey-box accuracy rises much, adaptive attacks take most of it."""
    from experiments.nets import mlp

    data = replace(open_data("digits"), views=CropsAndFlips())
    recipe = Recipe(epochs=20, batch_size=64, lr=0.05)

    def student() -> Tapped:
        return Tapped(mlp(10, 64, 128), *data.mean_std)

    plain = find("plain")(Run(data, student, recipe=recipe, hardware=on_cpu, seed=5)).eval()
    run = Run(data, student, recipe=recipe, hardware=on_cpu, seed=5)
    model = find("lq_vae")(run, width=0.125, lr=1e-3).eval()
    images, labels = data.test.inputs.permute(0, 3, 1, 2) / 255, data.test.labels

    def accuracy(inputs: torch.Tensor) -> float:
        with torch.no_grad():
            return float((model(inputs).argmax(1) == labels).double().mean())

    attack = PGD(radius=0.15, steps=15, loss="margin")
    grey = attack(plain, images, labels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        undefended = float((plain(grey).argmax(1) == labels).double().mean())
    adaptive = attack.replace(bpda="soft20")(model, images, labels, torch.Generator().manual_seed(0))
    assert accuracy(images) > 0.8
    assert accuracy(grey) > undefended + 0.3
    assert accuracy(adaptive) < accuracy(grey) - 0.15
    assert 0.2 < run.notes["positive_bits"] < 0.8
    assert filter_of(model).latent == 64
