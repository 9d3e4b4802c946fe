"""The method spikes: the loss of a step, the draw that both networks get, assistants, files, and what it achieves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tutelage
from tests.runs.calls import pixels
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, NoAugmentation, open_data
from tutelage.data.conditions import Subset
from tutelage.data.loader import Batches
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.spikes import EncodedImages
from tutelage.methods.spikes.terms import window_distance
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_model
from tutelage.studies.functions import read_lines
from tutelage.tasks import evaluate
from tutelage.training import Run

BRIEF = {"width": 2}
STUDENT = "snn8-4"
TEACHER = "snn12-4"
SHORT = Recipe(epochs=2, batch_size=16, lr=0.01, optimizer="Adam", weight_decay=0.0)


def network(name: str = STUDENT, seed: int | None = 1, classes: int = 4) -> Tapped:
    """Of a student, a run's own seed draws the weights: ``seed=None``."""
    if seed is not None:
        torch.manual_seed(seed)
    return Tapped(make_model(name, num_classes=classes, input_shape=(1, 8, 8)).module)


def make_run(data: Data, on_cpu: Hardware, teacher: Tapped | None = None, recipe: Recipe = SHORT) -> Run:
    teachers = [network(TEACHER, 5) if teacher is None else teacher]
    return Run(data, network, teachers, recipe=recipe, hardware=on_cpu, seed=3)


@pytest.fixture
def binary(tiny_data: Data) -> Data:
    """One batch of black and white images, whose encoding has no randomness."""

    def black_and_white(split: Any) -> Any:
        return replace(split, inputs=(split.inputs > 60).to(torch.uint8) * 255)

    part = black_and_white(tiny_data.train.subset(torch.arange(16)))
    return replace(tiny_data, train=part, test=black_and_white(tiny_data.test), views=NoAugmentation())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 0.7, "window_weight": 0.0},
        {"width": 4, "stride": 3, "window_weight": 2.0, "alpha": 0.3, "temperature": 3.0},
        {"hidden_weight": 0.5, "window_weight": 0.0},
    ],
)
def test_loss_of_the_first_step(settings: dict[str, Any], binary: Data, on_cpu: Hardware) -> None:
    teacher = network(TEACHER, 5)
    run = make_run(binary, on_cpu, teacher, SHORT.replace(epochs=1))
    find("spikes")(run, **settings)
    batch = next(Batches(binary.train, batch_size=16, seed=3).epoch(0))
    with torch.no_grad():
        student, target = (model.tap(batch.inputs, ("logits", "spikes")) for model in (network(), teacher))
    entry = run.fits[0].history[0]["learners"]["student"]
    assert entry["ce"] == pytest.approx(F.cross_entropy(student["logits"], batch.targets).item(), rel=1e-4)
    expected = {"ce"}
    if settings.get("window_weight", 1.0):
        distance = window_distance(
            student["spikes"], target["spikes"], settings.get("width", 1), settings.get("stride", 1)
        )
        assert entry["window"] == pytest.approx(distance.mean().item(), rel=1e-4)
        expected |= {"window"}
    if settings.get("alpha"):
        tau = settings.get("temperature", 2.0)
        log_student, log_target = ((outputs["logits"] / tau).log_softmax(1) for outputs in (student, target))
        divergence = tau**2 * (log_target.exp() * (log_target - log_student)).sum(1).mean()
        assert entry["kd"] == pytest.approx(divergence.item(), rel=1e-4)
        expected |= {"kd"}
    if settings.get("hidden_weight"):
        assert entry["hidden"] > 0
        expected |= {"hidden"}
    assert {"ce", "window", "kd", "hidden"} & entry.keys() == expected


def test_student_and_teacher_get_one_draw_and_each_step_another(tiny_data: Data, on_cpu: Hardware) -> None:
    inputs: dict[str, list[Tensor]] = {"student": [], "teacher": []}

    def recording(model: Tapped, name: str) -> Tapped:
        model.module.register_forward_pre_hook(lambda _, args: inputs[name].append(args[0].clone()))
        return model

    run = Run(
        replace(tiny_data, validation=None),
        lambda: recording(network(), "student"),
        [recording(network(TEACHER, 5), "teacher")],
        recipe=SHORT.replace(epochs=3),
        hardware=on_cpu,
        seed=3,
    )
    find("spikes")(run)
    student, teacher = ([batch for batch in inputs[name] if batch.shape == (16, 4, 1, 8, 8)] for name in inputs)
    assert len(student) == 9
    assert all(torch.equal(one, other) for one, other in zip(student, teacher, strict=True))
    assert len({batch.flatten().numpy().tobytes() for batch in student}) == 9


def test_a_student_that_is_its_teacher_has_no_distance(tiny_data: Data, on_cpu: Hardware) -> None:
    """The first step of each fit, with the weights of the teacher: the draw is the same."""
    teacher = network()
    recipe = SHORT.replace(epochs=1, batch_size=48, lr=1e-9)
    run = make_run(tiny_data, on_cpu, teacher, recipe)
    find("spikes")(run, alpha=0.5, hidden_weight=1.0)
    entry = run.fits[0].history[0]["learners"]["student"]
    assert [entry[name] for name in ("window", "kd", "hidden")] == [0, 0, 0]


def test_assistants_are_trained_one_from_another(
    tiny_data: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    run = make_run(tiny_data, on_cpu)
    student = find("spikes")(run, assistants=("snn10-4", "snn9-4"))
    assert [next(iter(fit.history[0]["learners"])) for fit in run.fits] == ["assistant1", "assistant2", "student"]
    assert [note["network"] for note in run.notes["assistants"]] == ["snn10-4", "snn9-4"]
    assert all(0 <= note["accuracy"] <= 1 for note in run.notes["assistants"])
    direct = find("spikes")(make_run(tiny_data, on_cpu))
    assert changed(state_of(student), state_of(direct))
    assert "assistants" not in make_run(tiny_data, on_cpu).notes


def test_matched_counts_come_near_the_teachers_and_help_few_neurons(on_cpu: Hardware) -> None:
    """8 hidden neurons of 6 steps after 120 steps of training, compared with the labels alone."""
    data = Subset(60, 0)(replace(open_data("digits"), views=NoAugmentation()))
    recipe = SHORT.replace(epochs=12, batch_size=64, schedule="constant")

    def trained(name: str, *teachers: Tapped, **settings: Any) -> Tapped:
        run = Run(data, lambda: network(name, None, 10), teachers, recipe=recipe, hardware=on_cpu, seed=1)
        return find("spikes" if teachers else "plain")(run, **settings).eval()

    @torch.no_grad()
    def counts(model: Tapped) -> Tensor:
        torch.manual_seed(0)
        return torch.stack([model(pixels(data)) for _ in range(3)]).mean(0)

    teacher = trained("snn64-6")
    labels, matched = trained("snn8-6"), trained("snn8-6", teacher, window_weight=1.0, width=6)
    distances = [float((counts(model) - counts(teacher)).abs().mean()) for model in (labels, matched)]
    accuracies = [float(accuracy(counts(model), data.test.labels)) for model in (labels, matched)]
    assert distances[1] < 0.8 * distances[0]
    assert accuracies[1] > accuracies[0] + 0.03


def test_measured_gains_need_few_neurons_and_counts_follow_the_teacher() -> None:
    """The results of ``experiments.spikes``, whose trainings are too long for a test."""
    lines = read_lines(Path(__file__).parents[2] / "docs" / "results" / "spikes.jsonl")

    def values(condition: str, row: str, name: str) -> Tensor:
        measured = {
            line["seed"]: line["measured"] for line in lines if (line["condition"], line["row"]) == (condition, row)
        }
        assert len(measured) == 5
        return torch.tensor([measured[seed][name] for seed in sorted(measured)])

    gains = {c: values(c, "count", "accuracy") - values(c, "labels", "accuracy") for c in ("slow", "8", "16")}
    assert gains["slow"].mean() > 0.05
    assert (gains["slow"] > 0).all()
    assert gains["8"].mean() > 0.01
    assert gains["16"].mean().abs() < 0.01
    for condition in ("8", "16"):
        target = values(condition, "labels", "teacher_count").mean()
        deviations = {
            row: values(condition, row, "count").mean() - target for row in ("labels", "rate", "window", "count")
        }
        assert max(abs(deviations["window"]), abs(deviations["count"])) < 0.1
        assert min(deviations["labels"], deviations["rate"]) > 0.2


@pytest.mark.filterwarnings("ignore:the teacher .* chance level")
def test_metrics_over_draws_and_time(tiny_data: Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "device": "cpu", "optimizer": "Adam", "lr": 0.02, "weight_decay": 0}
    result = tutelage.train("snn12-4", tiny_data, epochs=2, out=tmp_path / "teacher", **options)
    distilled = tutelage.distill(
        tmp_path / "teacher", STUDENT, tiny_data, method="spikes", epochs=2, out=tmp_path / "run", **options
    )
    test: dict[str, Any] = distilled.metrics["test"]
    assert len(test["accuracy_by_steps"]) == 4
    assert test["accuracy_by_steps"][-1] == test["one_draw_accuracy"]
    assert test["one_draw_spread"] >= 0
    assert test["spikes_per_image"] == pytest.approx(sum(test["spikes_per_layer"]))
    assert len(test["spikes_per_layer"]) == 2
    assert {"one_draw_accuracy", "spikes_per_image"} <= result.metrics["test"].keys()
    opened = open_model(str(tmp_path / "run"), tiny_data)
    assert opened.has_normalisation((0.0,), (1.0,))
    again = evaluate(opened, tiny_data)
    assert {name: again[name] for name in test.keys() & again.keys()} == {
        name: test[name] for name in test.keys() & again.keys()
    }


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "pieces"),
    [
        ("resnet8x0.25", TEACHER, {}, ("needs spiking networks", "the student, ResNet", "snn16")),
        (STUDENT, "resnet8x0.25", {}, ("needs spiking networks", "the teacher, ResNet")),
        (STUDENT, "snn12-6", {}, ("the teacher has 6 time steps and the student 4", "snn200-4")),
        (STUDENT, TEACHER, {"assistants": ("snn9",)}, ("the assistant snn9 has 12 time steps",)),
        (STUDENT, TEACHER, {"assistants": ("resnet8",)}, ("the assistant resnet8, ResNet",)),
        (STUDENT, TEACHER, {"width": 5}, ("1 to 4 of the 4 steps", "got width 5")),
        (STUDENT, TEACHER, {"width": 2, "stride": 3}, ("got stride 3",)),
    ],
)
def test_networks_and_windows_that_do_not_fit_are_refused(
    student: str,
    teacher: str,
    settings: dict[str, Any],
    pieces: tuple[str, ...],
    tiny_data: Data,
    on_cpu: Hardware,
    refused: Callable[..., Any],
) -> None:
    run = Run(tiny_data, lambda: network(student), [network(teacher)], recipe=SHORT, hardware=on_cpu)
    with refused(*pieces):
        find("spikes")(run, **settings)
    assert run.fits == []


def test_the_view_draws_for_each_batch(tiny_data: Data) -> None:
    batch = next(Batches(tiny_data.train, batch_size=16, seed=3).epoch(0))
    view = EncodedImages(50)
    torch.manual_seed(1)
    first, second = view(batch, None, None), view(batch, None, None)  # type: ignore[arg-type]
    assert first.inputs.shape == (16, 50, 1, 8, 8)
    assert torch.equal(first.targets, batch.targets)
    assert not torch.equal(first.inputs, second.inputs)
    assert (first.inputs.mean(1) - batch.inputs).abs().mean() < 0.06
