"""The method lre_amc: size and accuracy, repairs, and restored networks."""

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
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods import find
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, execute
from tutelage.training import Run

RECIPE = Recipe(epochs=6, batch_size=16, lr=0.1)
BRIEF = {"keep": 0.5}  # for the conformance tests


@pytest.fixture
def make_run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Run]:
    def make(*teachers: Tapped, **options: Any) -> Run:
        options = {"data": tiny_data, "student": lambda: tiny_model(2, width=6), "recipe": RECIPE, **options}
        return Run(teachers=teachers, hardware=on_cpu, **options)

    return make


def accuracy_of(run: Run, model: Tapped) -> float:
    part = run.data.validation
    assert part is not None
    return float((run.predict(model, part).argmax(1) == part.labels).float().mean())


def test_network_is_smaller_and_within_tolerance(make_run: Callable[..., Run], tiny_model: Any) -> None:
    run = make_run()
    student = find("lre_amc")(run, tolerance=0.1, keep=0.7)
    dense = run.fits[0].history[-1]["learners"]["student"]["validation_accuracy"]
    assert set(run.fits[0].history[-1]["learners"]["student"]) >= {"ce", "validation_accuracy"}
    assert accuracy_of(run, student) >= dense - 0.1 - 1e-6
    assert parameters(student) < 0.8 * parameters(tiny_model(2, width=6))
    sizes = {entry["layer"]: (entry["inputs"], entry["outputs"]) for entry in applied_operations(student.module)}
    assert sizes["conv2"][0] == sizes["conv1"][1] == sizes["bn1"][0] == student.module.conv1.out_channels
    assert sizes["fc"] == (sizes["conv2"][1], 4)


def test_pruning_uses_the_tolerance(make_run: Callable[..., Run], trained_model: Callable[..., Tapped]) -> None:
    run = make_run(trained_model(2, width=6))
    student = find("lre_amc")(run, dense="teacher", tolerance=1.0, floor=3)
    assert run.fits == []  # no accuracy is below this
    assert (student.module.conv1.out_channels, student.module.conv2.out_channels) == (3, 3)


@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_pruning_ends_at_the_target(
    resource: str, make_run: Callable[..., Run], trained_model: Callable[..., Tapped]
) -> None:
    def cost(model: Tapped) -> float:
        return flops(model, torch.rand(1, 1, 8, 8)) if resource == "flops" else parameters(model)

    settings = {"dense": "teacher", "tolerance": 1.0, "keep": 0.9, "resource": resource}
    teacher = trained_model(2, width=12)
    run = make_run(teacher, student=lambda: trained_model(2, width=12))
    costs = [cost(find("lre_amc")(run, target=target, **settings)) / cost(teacher) for target in (0.7, 0.4)]
    assert 0.6 < costs[0] <= 0.7  # a step is one unit of a layer of 12 or of 24
    assert 0.3 < costs[1] <= 0.4
    # If accuracy ends it earlier, the target does not matter.
    settings |= {"tolerance": 0.0, "repair_epochs": 0}
    early, other = (find("lre_amc")(run, target=target, **settings) for target in (0.05, None))
    assert cost(early) == cost(other) > 0.05 * cost(teacher)


def test_failed_repair_restores_the_network(
    make_run: Callable[..., Run], trained_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    teacher = trained_model(2, width=6)
    before = state_of(teacher)
    run = make_run(teacher)
    student = find("lre_amc")(run, dense="teacher", tolerance=0.0, repair_epochs=0)
    dense = accuracy_of(run, teacher)
    assert run.fits == []
    assert accuracy_of(run, student) >= dense
    assert changed(before, state_of(teacher)) == set()
    # In each layer, removing another unit would have exceeded the tolerance.
    assert parameters(student) > parameters(find("lre_amc")(run, dense="teacher", tolerance=0.3, repair_epochs=0))


def test_repair_stops_at_first_sufficient_epoch(
    make_run: Callable[..., Run], trained_model: Callable[..., Tapped]
) -> None:
    teacher = trained_model(2, width=6)
    run = make_run(teacher)
    settings = {"dense": "teacher", "keep": 0.4, "tolerance": 0.05}
    student = find("lre_amc")(run, **settings, repair_epochs=30)
    goal = accuracy_of(run, teacher) - 0.05 - 1e-6
    assert run.fits
    accuracies = []
    for fit_result in run.fits:
        entries = [record["learners"]["student"] for record in fit_result.history]
        assert all(entry["validation_accuracy"] < goal for entry in entries[:-1])
        assert entries[-1]["validation_accuracy"] >= goal or len(entries) == 30
        accuracies.append(entries[-1]["validation_accuracy"] >= goal)
        assert set(entries[0]) >= {"ce", "kd"}
    assert any(accuracies)
    unrepaired = find("lre_amc")(make_run(teacher), **settings, repair_epochs=0)
    assert parameters(student) < parameters(unrepaired)
    # The selected student, if any, has the same shape.
    if student in run.selected:
        student.module.load_state_dict(dict(run.selected[student].state))


def test_repair_on_labels_without_teacher(make_run: Callable[..., Run], trained_model: Callable[..., Tapped]) -> None:
    run = make_run(trained_model(2, width=6))
    find("lre_amc")(run, dense="teacher", keep=0.4, label_weight=1, repair_epochs=2)
    assert run.fits
    for fit_result in run.fits:
        assert all("kd" not in record["learners"]["student"] for record in fit_result.history)
        assert all(record["forward_passes"]["teacher"] == 0 for record in fit_result.history)


def test_finished_run_is_loaded_pruned(
    tmp_path: Path, tiny_data: Data, tiny_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    config = Config(
        student="given:tiny", method="lre_amc", settings={"tolerance": 0.3}, epochs=4, batch_size=16, device="cpu"
    )
    overrides = Overrides(data=tiny_data, student=lambda: tiny_model(2, width=6))
    first = execute(config, tmp_path / "run", overrides=overrides)
    cost = first.metrics["cost"]
    assert cost["parameters"] == parameters(first.model) < parameters(tiny_model(2, width=6))
    second_result = execute(config, tmp_path / "run", overrides=overrides)
    assert changed(state_of(first.model.module), state_of(second_result.model.module)) == set()
    assert second_result.metrics == first.metrics


def test_unsuitable_runs_are_refused(
    make_run: Callable[..., Run], tiny_data: Data, tiny_model: Callable[..., Tapped], refused: Any
) -> None:
    with refused("held-out split", "--validation 0.1"):
        find("lre_amc")(make_run(data=replace(tiny_data, validation=None)))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with refused("Sequential has no layer", "not coupled by a sum"):
        find("lre_amc")(make_run(student=lambda: Tapped(flat)))
    for other in (tiny_model(1, width=5), Tapped(flat), tiny_model(1, width=6).with_size((4, 4))):
        with refused("dense=teacher", "TinyNet", "dense=trained"):
            find("lre_amc")(make_run(other), dense="teacher")
    with refused("needs a teacher"):
        find("lre_amc")(make_run(), dense="teacher")
    for setting in ({"keep": 1.0}, {"keep": 0.0}, {"floor": 1}, {"tolerance": -0.1}, {"ridge": 0.0}):
        with refused(*setting):
            find("lre_amc")(make_run(), **setting)


def test_held_out_samples_without_labels_are_refused(
    make_run: Callable[..., Run], tiny_data: Data, refused: Any
) -> None:
    part = tiny_data.validation
    assert part is not None
    blank = replace(tiny_data, validation=replace(part, labels=torch.full_like(part.labels, -1)))
    with refused("none of the 16 samples has a label"):
        find("lre_amc")(make_run(data=blank))
