"""Stages of hints and flow, forms of mutual learning, and the label loss of Hinton in every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.pairs import RECIPE
from tests.runs.uses import CLASSIFY
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.errors import TutelageError
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.training import Run


def test_hints_are_learnt_in_the_first_stage(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    teacher = tiny_model(1, width=6)
    records: list[dict[str, Any]] = []
    states: list[dict[str, Tensor]] = []
    model: list[Tapped] = []

    def student() -> Tapped:
        model.append(tiny_model(2))
        states.append(state_of(model[-1]))
        return model[-1]

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        states.append(state_of(model[-1]))

    run = Run(
        tiny_data,
        student,
        [teacher],
        recipe=Recipe(epochs=8, batch_size=16, lr=0.02),
        hardware=on_cpu,
        report=report,
    )
    find("fitnet")(run, hint_share=0.5)
    assert [len(fit_result.history) for fit_result in run.fits] == [4, 4]
    hints = [record["learners"]["student"]["hint"] for record in records[:4]]
    assert hints[-1] < 0.8 * hints[0]
    assert [record["fit"] for record in records] == [0] * 4 + [1] * 4
    # the first stage moves the lower half alone, the second everything
    lower = {name for name in states[0] if name.startswith(("module.conv1", "module.bn1"))}
    assert changed(states[0], states[4]) == lower
    all_names = {name for name in states[0] if name.startswith("module.")}
    assert changed(states[4], states[8]) == all_names


@pytest.mark.parametrize("update", ["sequential", "synchronous"])
@pytest.mark.parametrize("target", ["each", "ensemble"])
def test_mutual_learning_has_its_forms(
    update: str, target: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    run = Run(tiny_data, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=RECIPE, hardware=on_cpu, seed=1)
    find("dml")(run, update=update, target=target, peers=3)
    (fit_result,) = run.fits
    assert set(fit_result.selected) == set(fit_result.history[-1]["learners"]) == {"net1", "net2", "net3"}
    assert all(entry["mimicry"] > 0 for entry in fit_result.history[-1]["learners"].values())


def test_the_forms_of_mutual_learning_differ(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for settings in ({}, {"update": "synchronous"}, {"target": "ensemble"}, {"weight": 0}, {"temperature": 3}):
        run = Run(tiny_data, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=RECIPE, hardware=on_cpu)
        states.append(state_of(find("dml")(run, peers=3, **settings)))
    for number, state in enumerate(states):
        assert all(changed(state, other) for other in states[:number])
    plain = state_of(
        find("plain")(Run(tiny_data, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=RECIPE, hardware=on_cpu))
    )
    assert changed(states[3], plain) == set()  # nets that do not heed each other


@pytest.mark.parametrize("method", [name for name in CLASSIFY if "kd_alpha" in find(name).parameters])
def test_hintons_term_joins_any_method_with_a_teacher(
    method: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states, runs = [], []
    for alpha in (0.0, 0.5):
        torch.manual_seed(0)
        run = Run(tiny_data, lambda: tiny_model(2), [tiny_model(1, width=6)], recipe=RECIPE, hardware=on_cpu)
        states.append(state_of(find(method)(run, kd_alpha=alpha)))
        runs.append(run)
    plain_values, combined_values = (run.fits[-1].history[-1]["learners"]["student"] for run in runs)
    assert "kd" not in plain_values
    assert combined_values["kd"] > 0
    assert changed(*states)


@pytest.mark.parametrize("method", CLASSIFY)
def test_every_method_with_a_teacher_takes_it(
    method: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    logits = {"dist", "dkd", "logit_standardization", "mlkd", "rld"}
    # These match soft targets themselves; ghnd has no label loss that could be replaced.
    own_form = {"hinton", "abstention", "ani", "ghnd", "low_bit", "occlusion", "planting", "uniform_width", *logits}
    run = Run(tiny_data, lambda: tiny_model(2), recipe=RECIPE.replace(epochs=1), hardware=on_cpu)
    try:
        find(method)(run)
        needs_one = False
    except TutelageError as error:
        needs_one = "needs a teacher" in str(error)
    assert ("kd_alpha" in find(method).parameters) == (needs_one and method not in own_form)


def test_a_joint_hint_is_one_stage(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), [tiny_model(1, width=6)], recipe=RECIPE, hardware=on_cpu)
    find("fitnet")(run, mode="joint")
    (fit_result,) = run.fits
    entry = fit_result.history[-1]["learners"]["student"]
    assert {"ce", "hint"} <= entry.keys()
    assert "soft" not in entry


def test_the_flow_is_learnt_in_the_first_stage(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states: list[dict[str, Tensor]] = []
    model: list[Tapped] = []

    def student() -> Tapped:
        model.append(tiny_model(2))
        states.append(state_of(model[-1]))
        return model[-1]

    run = Run(
        tiny_data,
        student,
        [tiny_model(1, width=6)],
        recipe=Recipe(epochs=8, batch_size=16, lr=0.02),
        hardware=on_cpu,
        report=lambda record: states.append(state_of(model[-1])),
    )
    find("fsp")(run, init_share=0.5, init_lr=1.0)
    first, second = (fit_result.history for fit_result in run.fits)
    assert (len(first), len(second)) == (4, 4)
    flow = [record["learners"]["student"]["flow"] for record in first]
    assert flow[-1] < flow[0]
    assert "flow" not in second[0]["learners"]["student"]
    classifier = {name for name in states[0] if name.startswith("module.fc")}
    assert classifier
    assert changed(states[0], states[4]).isdisjoint(classifier)  # untouched to the bit, and then trained
    assert classifier <= changed(states[4], states[8])


def test_one_flow_needs_two_layers(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    def single() -> Tapped:
        body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())
        return Tapped(
            nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)), roles={"stage1": "0"}
        )

    run = Run(tiny_data, single, [single()], recipe=RECIPE, hardware=on_cpu)
    with refused("FSP compares the flow between two layers", "stage1", "roles="):
        find("fsp")(run)
    with refused("ONE branches the last stage", "1 stage", "roles="):
        find("one")(run)
