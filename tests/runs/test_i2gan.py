"""The method i2gan: its loss, its steps, and the resulting network."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches, mix_seeds
from tutelage.data.orders import LabelledFirst
from tutelage.methods import find
from tutelage.models.generator import Generator
from tutelage.models.random_state import seeded
from tutelage.models.tapped import Tapped
from tutelage.runs import execute, open_model
from tutelage.sources import EMA
from tutelage.terms.generated import GeneratedImages
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.updates import frozen_running_statistics

BRIEF = {"generator": "mlp-ganx0.02", "generated": 2, "decay": 0.5}
RECIPE = Recipe(epochs=2, batch_size=10, schedule="constant")


class RecordingRun(Run):
    """A run that records the learners of its fit, with their initial weights."""

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        self.learners, self.options = learners, options
        self.initial = [copy.deepcopy(learner.model) for learner in learners]
        return super().fit(*learners, **options)


@pytest.fixture
def trained_run(
    partly_labelled: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> Callable[..., tuple[Tapped, RecordingRun]]:
    """``trained_run(data=partly_labelled, recipe=RECIPE, **settings)``: the returned network, and the run."""

    def make(data: Data = partly_labelled, recipe: Recipe = RECIPE, **settings: Any) -> tuple[Tapped, RecordingRun]:
        run = RecordingRun(data, tiny_model, recipe=recipe, hardware=on_cpu, seed=3)
        return find("i2gan")(run, **BRIEF | settings), run

    return make


# --- the loss


def test_weights_and_batches_of_the_terms(trained_run: Callable[..., tuple[Tapped, RecordingRun]]) -> None:
    model, run = trained_run(unsupervised=5.0, labelled=0.4)
    generator, student = run.learners
    assert (generator.name, student.name) == ("generator", "student")
    assert {name: term.at(0.5) for name, term in student.terms.items()} == {"ce": 1, "real": 2.5, "generated": 2.5}
    assert {name: term.at(0.5) for name, term in generator.terms.items()} == {"features": 1}
    assert isinstance(student.terms["generated"].view, GeneratedImages)
    assert run.options["order"] == LabelledFirst(4)
    assert isinstance(student.source, EMA)
    assert student.source.decay == 0.5
    assert student.deployed is student.source.model is model
    # Ten real images, of which six are unlabelled: each step generates 12 for each network, for which the student
    # runs twice, and runs on 6 real ones for the generator.
    steps = 2 * (40 // 6)
    passes = sum(record["forward_passes"]["student"] for record in run.fits[0].history)
    assert passes == steps * (10 + 4 * 12 + 6)


def test_optimizer_of_both_networks(trained_run: Callable[..., tuple[Tapped, RecordingRun]]) -> None:
    optimizer = trained_run(lr=0.002)[1].options["optimizer"]([nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 0.002
    assert optimizer.defaults["betas"] == (0.5, 0.999)
    assert optimizer.defaults["weight_decay"] == 0


# --- the steps


def averaged(average: nn.Module, student: nn.Module, updates: int, decay: float) -> None:
    """One update of the average, in place."""
    a = min(decay, 1 - 1 / updates)
    for held, current in zip(average.state_dict().values(), student.state_dict().values(), strict=True):
        held.copy_(a * held + (1 - a) * current if held.is_floating_point() else current)


def train_reference(data: Data, student: Tapped, generator: Generator, times: int, weight: float) -> Tapped:
    """The method in plain torch: trains both networks in place, and returns the average of the student."""
    average = copy.deepcopy(student)
    students, generators = (torch.optim.Adam(m.parameters(), lr=3e-4, betas=(0.5, 0.999)) for m in (student, generator))
    second = Batches(data.train, batch_size=10, views=data.views, seed=mix_seeds(3, 4, zlib.crc32(b"second")))
    batches = Batches(data.train, batch_size=10, views=data.views, seed=3, order=LabelledFirst(5))
    student.train()
    generator.train()
    with seeded(mix_seeds(3, 1)):
        number = 0
        for epoch in range(2):
            for batch in batches.epoch(epoch):
                labelled, real = student(batch.inputs[:5]), student(batch.inputs[5:])
                fake = generator.module(torch.randn(5 * times, generator.latent)).detach()
                with frozen_running_statistics(student):
                    generated = student(fake)
                z_real, z_generated = real.exp().sum(1), generated.exp().sum(1)
                unsupervised = -(z_real / (1 + z_real)).log().mean() - (1 / (1 + z_generated)).log().mean()
                students.zero_grad()
                (F.cross_entropy(labelled, batch.targets[:5]) + weight / 2 * unsupervised).backward()
                students.step()
                number += 1
                averaged(average, student, number, 0.5)
                images = generator.module(torch.randn(5 * times, generator.latent))
                with frozen_running_statistics(student):
                    h_real = student.tap(second.at(number - 1).inputs[5:], ("embedding",))["embedding"]
                    h_generated = student.tap(images, ("embedding",))["embedding"]
                generators.zero_grad()
                (h_real.mean(0) - h_generated.mean(0)).abs().mean().backward()
                generators.step()
    return average


def test_equals_the_method_in_plain_torch(
    partly_labelled: Data, trained_run: Callable[..., tuple[Tapped, RecordingRun]]
) -> None:
    model, run = trained_run(unsupervised=3.0, generated=2)
    generator, student = run.initial
    assert isinstance(generator, Generator)
    average = train_reference(partly_labelled, student, generator, 2, 3.0)
    for network, expected in zip(
        (model, run.learners[1].model, run.learners[0].model), (average, student, generator), strict=True
    ):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_weight_zero_equals_training_on_labelled_samples_alone(
    partly_labelled: Data, trained_run: Callable[..., tuple[Tapped, RecordingRun]]
) -> None:
    model, run = trained_run(unsupervised=0)
    assert len(run.learners) == 1
    (student,) = run.initial
    average, number = copy.deepcopy(student), 0
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-4, betas=(0.5, 0.999))
    batches = Batches(partly_labelled.train, batch_size=10, views=partly_labelled.views, seed=3, order=LabelledFirst(5))
    student.train()
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(student(batch.inputs[:5]), batch.targets[:5]).backward()
            optimizer.step()
            number += 1
            averaged(average, student, number, 0.5)
    for name, value in average.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_initial_weights_do_not_depend_on_the_method(
    trained_run: Callable[..., tuple[Tapped, RecordingRun]], state_of: Any, changed: Any
) -> None:
    states = [[state_of(model) for model in trained_run(**settings)[1].initial] for settings in ({}, {"generated": 3})]
    for first, second in zip(*states, strict=True):
        assert changed(first, second) == set()
    (student,) = trained_run(unsupervised=0)[1].initial
    assert changed(states[0][1], state_of(student)) == set()


def test_fully_labelled_samples_count_as_both(
    tiny_data: Data, trained_run: Callable[..., tuple[Tapped, RecordingRun]]
) -> None:
    _, run = trained_run(tiny_data)
    _, student = run.learners
    assert student.terms["ce"].view is student.terms["real"].view is None
    record = run.fits[0].history[-1]["learners"]
    assert set(record["student"]) >= {"ce", "real", "generated"}
    assert set(record["generator"]) == {"features"}


def test_student_separates_real_from_generated_images(partly_labelled: Data, on_cpu: Hardware) -> None:
    """Its losses fall below those of a constant P(real), whose sum is at least 2 ln 2."""

    def student() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), (0.5,), (0.25,))

    run = Run(partly_labelled, student, recipe=RECIPE.replace(epochs=10), hardware=on_cpu, seed=3)
    find("i2gan")(run, **BRIEF, lr=1e-2)
    first, last = (run.fits[0].history[epoch]["learners"]["student"] for epoch in (0, -1))
    assert first["real"] + first["generated"] > 2 * math.log(2)
    assert last["real"] + last["generated"] < math.log(2)
    assert last["ce"] < first["ce"]


# --- end to end


class StoppedError(Exception):
    pass


def test_resumes_exactly_with_unlabelled_samples(
    partly_labelled: Data,
    tiny_model: Callable[..., Tapped],
    on_cpu: Hardware,
    tmp_path: Path,
    state_of: Any,
    changed: Any,
) -> None:
    def train(folder: Path, stop: int = 0) -> tuple[dict[str, Tensor], Any]:
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        run = Run(partly_labelled, tiny_model, recipe=RECIPE, hardware=on_cpu, seed=4, folder=folder, report=report)
        state = state_of(find("i2gan")(run, **BRIEF))
        return state, [record["learners"] for record in run.fits[0].history]

    expected_state, expected_history = train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", 1)
    state, history = train(tmp_path / "stopped")
    assert changed(expected_state, state) == set()
    assert history == expected_history


def test_command_removes_labels_and_saves_the_student_alone(tiny_npz: str, tiny_data: Data, tmp_path: Path) -> None:
    config = Config(
        data=tiny_npz,
        student="resnet8x0.25",
        method="i2gan",
        settings=BRIEF,
        noise="missing:0.7",
        epochs=1,
        batch_size=12,
        device="cpu",
        seed=1,
    )
    result = execute(config, tmp_path / "run")
    assert math.isfinite(result.metrics["test"]["nll"])
    assert isinstance(tiny_data.test.inputs, Tensor)
    pixels = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255
    opened_model = open_model(str(tmp_path / "run"), tiny_data).eval()
    assert torch.equal(opened_model(pixels), result.model.eval()(pixels))


@pytest.mark.parametrize(
    "invalid_settings",
    [
        {"unsupervised": -1},
        {"generated": 0},
        {"labelled": 1.5},
        {"lr": 0},
        {"decay": 1.0},
        {"generator": "resnet8"},
        {"generator": "nothing"},
    ],
)
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], trained_run: Callable[..., tuple[Tapped, RecordingRun]], refused: Any
) -> None:
    ((_, value),) = invalid_settings.items()
    with refused(value):
        trained_run(**invalid_settings)


def test_generator_of_the_wrong_kind_is_named(
    trained_run: Callable[..., tuple[Tapped, RecordingRun]], refused: Any
) -> None:
    with refused("generator='resnet8' is no generator of images", "dcgan"):
        trained_run(generator="resnet8")
