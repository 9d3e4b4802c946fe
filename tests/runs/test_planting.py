"""The method planting: it grows and becomes better, what it selects by, when it ends, and the saved network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.evaluation import predict
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods import find
from tutelage.models.export import export_onnx
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, execute
from tutelage.runs.models import open_model
from tutelage.training import Run

BRIEF = {"layers": "all", "channels": 1, "planting_epochs": 1, "rounds": 1}
RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05)
SHORT = {"channels": 2, "planting_epochs": 2, "rounds": 2, "patience": 2}


@pytest.fixture
def make_run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Run]:
    """``make_run(*teachers, **options)``: a run of a network with 2 and 4 channels."""

    def make(*teachers: Tapped, **options: Any) -> Run:
        options = {"data": tiny_data, "student": lambda: tiny_model(2, width=2), "recipe": RECIPE, **options}
        return Run(teachers=teachers, hardware=on_cpu, seed=1, **options)

    return make


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


def two_layers(mean_std: Any, channels: int) -> Tapped:
    """Two convolutions with pooling, for images of 8 x 8."""
    layers = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return Tapped(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, 10)), *mean_std)


def test_accuracy_grows_by_ten_points(on_cpu: Hardware) -> None:
    """On held-out samples, which select, and on test samples, which do not."""
    full = open_data("digits")
    data = replace(
        full, train=full.train.subset(torch.arange(300)), validation=full.train.subset(torch.arange(300, 600))
    )
    recipe = Recipe(epochs=8, batch_size=50, optimizer="Adam", lr=0.02, weight_decay=0)

    def run(channels: int, *teachers: Tapped) -> Run:
        return Run(data, lambda: two_layers(data.mean_std, channels), teachers, recipe=recipe, hardware=on_cpu, seed=1)

    teacher = find("plain")(run(24))
    accuracies = []
    for method, settings in (("hinton", {}), ("planting", {"channels": 2, "planting_epochs": 6, "rounds": 3})):
        training = run(2, teacher)
        student = find(method)(training, **settings)
        accuracies.append(float((training.predict(student, data.test).argmax(1) == data.test.labels).float().mean()))
    growth = training.notes["growth"]
    losses = [entry["held_out_loss"] for entry in growth]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert growth[-1]["held_out_accuracy"] > growth[0]["held_out_accuracy"] + 0.1
    assert accuracies[1] > accuracies[0] + 0.1


@pytest.mark.parametrize("changes", [{}, {"optimizer": "AdamW", "lr": 0.01, "weight_decay": 0.1}, {"ema": 0.9}])
def test_earlier_entries_and_statistics_remain_in_every_bit(
    changes: dict[str, Any], make_run: Callable[..., Run], trained_model: Callable[..., Tapped]
) -> None:
    """The network before the first planting is that of hinton, which trains it alike."""
    recipe = RECIPE.replace(**changes)
    start = find("hinton")(make_run(trained_model(), recipe=recipe)).module.state_dict()
    run = make_run(trained_model(), recipe=recipe)
    student = find("planting")(run, **SHORT, delta=0)
    grown = student.module.state_dict()
    assert parameters(student) > sum(entry.numel() for entry in start.values())
    assert list(grown) == list(start)
    for name, value in start.items():
        part = grown[name][tuple(slice(size) for size in value.shape)]
        assert torch.equal(part, value), name


def test_each_round_plants_in_the_layer_of_the_smallest_loss(
    make_run: Callable[..., Run], trained_model: Callable[..., Tapped]
) -> None:
    run = make_run(trained_model())
    student = find("planting")(run, **SHORT)
    assert [len(fit.history) for fit in run.fits] == [3, 2, 2, 2, 2]
    assert all({"ce", "kd"} <= record["learners"]["student"].keys() for fit in run.fits for record in fit.history)
    start, *rounds = run.notes["growth"]
    assert start["layer"] is None
    for entry in rounds:
        assert entry["layer"] == min(entry["losses"], key=entry["losses"].get)
        assert entry["held_out_loss"] == min(entry["losses"].values())
        assert set(entry["losses"]) == {"conv1", "conv2"}
    best = run.notes["growth"][run.notes["best_round"]]
    assert best["parameters"] == parameters(student)
    part = run.data.validation
    assert part is not None
    assert best["held_out_loss"] == pytest.approx(F.cross_entropy(run.predict(student, part), part.labels).item())
    json.dumps(run.notes)


def test_the_test_split_selects_nothing(
    tiny_data: Data, make_run: Callable[..., Run], trained_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    test = replace(tiny_data.test, labels=tiny_data.test.labels.flip(0), inputs=255 - tiny_data.test.inputs)  # type: ignore[operator]
    states = []
    for data in (tiny_data, replace(tiny_data, test=test)):
        states.append(state_of(find("planting")(make_run(trained_model(), data=data), **SHORT)))
    assert changed(*states) == set()


def test_a_search_without_a_sufficient_fall_ends_after_its_patience(
    make_run: Callable[..., Run], tiny_model: Callable[..., Tapped]
) -> None:
    for patience in (1, 2):
        run = make_run()
        student = find("planting")(run, alpha=0, delta=100, rounds=4, planting_epochs=1, patience=patience)
        assert len(run.notes["growth"]) == 1 + patience
        assert run.notes["best_round"] == 0
        assert parameters(student) == parameters(tiny_model(2, width=2))
        assert student in run.selected


def test_the_budget_is_not_exceeded(make_run: Callable[..., Run], tiny_model: Callable[..., Tapped]) -> None:
    """A channel of the first layer costs 9 + 2 + 4 x 9 parameters, one of the second 2 x 9 + 2 + 4."""
    start = parameters(tiny_model(2, width=2))
    run = make_run()
    student = find("planting")(run, alpha=0, channels=1, planting_epochs=1, rounds=9, patience=9, budget=start + 60)
    sizes = [entry["parameters"] for entry in run.notes["growth"]]
    assert len(sizes) == 3
    assert parameters(student) <= max(sizes) <= start + 60
    assert set(run.notes["growth"][1]["losses"]) == {"conv1", "conv2"}
    assert set(run.notes["growth"][2]["losses"]) == {"conv2"}


@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_a_narrow_network_grows_to_the_target_in_equal_rounds(
    resource: str, make_run: Callable[..., Run], tiny_model: Callable[..., Tapped]
) -> None:
    run = make_run(student=lambda: tiny_model(2, width=16))
    whole = tiny_model(2, width=16)
    images = torch.rand(1, 1, 8, 8)

    def cost(model: Tapped) -> float:
        return flops(model, images) if resource == "flops" else parameters(model)

    settings = {"resource": resource, "target": 0.6, "narrow": 0.3, "channels": None, "rounds": 3, "tries": 1}
    student = find("planting")(run, alpha=0, planting_epochs=1, patience=3, delta=0, fine_tune=None, **settings)
    assert all(len(entry.get("losses", "1")) == 1 for entry in run.notes["growth"])
    assert [len(fit.history) for fit in run.fits] == [3, 1, 1, 1, 3]
    assert cost(student) <= 0.6 * cost(whole)
    if resource == "parameters":
        sizes = [entry["parameters"] / parameters(whole) for entry in run.notes["growth"]]
        assert 0.22 < sizes[0] <= 0.3
        steps = [0.6 - (0.6 - sizes[0]) * (1 - number / 3) for number in range(4)]
        assert all(step - 0.08 < size <= step + 1e-6 for size, step in zip(sizes, steps, strict=True))


def test_targets_that_cannot_be_grown_to_are_refused(make_run: Callable[..., Run], refused: Any) -> None:
    with refused("target=0.5 needs a smaller network", "set narrow, below 0.5"):
        find("planting")(make_run(), alpha=0, target=0.5)
    with refused("target=0.5 needs a smaller network"):
        find("planting")(make_run(), alpha=0, target=0.5, narrow=0.5)
    with refused("channels=None", "set target and narrow"):
        find("planting")(make_run(), alpha=0, channels=None)
    with refused("cannot be reduced to 0.001"):
        find("planting")(make_run(), alpha=0, narrow=0.001)


def test_labels_alone_need_no_teacher(make_run: Callable[..., Run], trained_model: Callable[..., Tapped]) -> None:
    run = make_run()
    find("planting")(run, alpha=0, **SHORT)
    assert all("kd" not in record["learners"]["student"] for fit in run.fits for record in fit.history)
    assert all(record["forward_passes"]["teacher"] == 0 for fit in run.fits for record in fit.history)


def test_joint_training_at_the_end(
    make_run: Callable[..., Run], trained_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    states, runs = [], []
    for epochs in (0, 4):
        run = make_run(trained_model())
        student = find("planting")(run, **SHORT, fine_tune=epochs)
        states.append(state_of(student))
        runs.append(run)
    trained = {name for name, _ in student.named_parameters()}
    assert changed(*states) >= trained
    assert len(runs[1].fits[-1].history) == 4
    assert student in runs[1].selected
    assert runs[0].notes == runs[1].notes


def test_units_of_linear_layers(make_run: Callable[..., Run], tiny_data: Data, refused: Any) -> None:
    def student() -> Tapped:
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 4))
        return Tapped(layers, *tiny_data.mean_std)

    with refused("Sequential has no convolution", "layers=all"):
        find("planting")(make_run(student=student), alpha=0)
    run = make_run(student=student)
    find("planting")(run, alpha=0, layers="all", **SHORT)
    assert run.notes["growth"][1]["layer"] == "1"


def test_unsuitable_runs_are_refused(
    make_run: Callable[..., Run], tiny_data: Data, tiny_model: Callable[..., Tapped], refused: Any
) -> None:
    with refused("held-out split", "--validation 0.1"):
        find("planting")(make_run(tiny_model(1), data=replace(tiny_data, validation=None)))
    with refused("needs a teacher", "--teacher"):
        find("planting")(make_run())
    with refused("budget=100", "parameters", "larger budget"):
        find("planting")(make_run(tiny_model(1)), budget=100)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with refused("Sequential has no layer", "use another network"):
        find("planting")(make_run(student=lambda: Tapped(flat)), alpha=0, layers="all")
    part = tiny_data.validation
    assert part is not None
    blank = replace(tiny_data, validation=replace(part, labels=torch.full_like(part.labels, -1)))
    with refused("none of the 16 samples has a label"):
        find("planting")(make_run(tiny_model(1), data=blank))
    for setting in ({"channels": 0}, {"rounds": 0}, {"delta": -1}, {"alpha": 2}, {"layers": "first"}):
        with refused(*setting):
            find("planting")(make_run(tiny_model(1)), **setting)


def test_a_grown_run_is_opened_and_evaluated_again(
    tiny_npz: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    settings = {"layers": "all", "alpha": 0.0, "planting_epochs": 1, "rounds": 2, "patience": 2, "delta": 0.0}
    options = {"data": tiny_npz, "student": "resnet8x0.25", "batch_size": 16, "device": "cpu"}
    options |= {"workers": 0, "channels_last": False, "precision": "float32"}
    config = Config(method="planting", settings=settings, epochs=1, lr=0.05, **options)
    result = execute(config, tmp_path / "run")
    growth = result.metrics["notes"]["growth"]
    assert len(growth) == 3
    assert {entry["operation"] for entry in applied_operations(result.model.module)} == {"widen"}
    assert result.metrics["cost"]["parameters"] == growth[-1]["parameters"] > growth[0]["parameters"]
    data = open_data(tiny_npz)
    opened = open_model(str(tmp_path / "run"), data)
    plain = execute(config.replace(method="plain", settings={}), tmp_path / "plain")
    assert list(opened.module.state_dict()) == list(plain.model.module.state_dict())
    assert torch.equal(predict(opened, data.test, device="cpu"), predict(result.model, data.test, device="cpu"))
    code, out, err = run("evaluate", str(tmp_path / "run"), "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"] == result.metrics["test"]["accuracy"]


def test_finished_run_is_loaded_grown(
    tmp_path: Path, tiny_data: Data, tiny_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    config = Config(
        student="given:tiny", method="planting", settings=SHORT | {"alpha": 0.0}, epochs=2, batch_size=16, device="cpu"
    )
    overrides = Overrides(data=tiny_data, student=lambda: tiny_model(2, width=2))
    first = execute(config, tmp_path / "run", overrides=overrides)
    second = execute(config, tmp_path / "run", overrides=overrides)
    assert changed(state_of(first.model.module), state_of(second.model.module)) == set()
    assert second.metrics == first.metrics


def test_onnx_export_of_a_grown_network(tmp_path: Path, make_run: Callable[..., Run], tiny_data: Data) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    run = make_run()
    student = find("planting")(run, alpha=0, delta=0, **SHORT).eval()
    assert run.notes["best_round"] > 0
    export_onnx(student, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": pixels(tiny_data).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), student(pixels(tiny_data)).detach(), rtol=1e-4, atol=1e-4)
