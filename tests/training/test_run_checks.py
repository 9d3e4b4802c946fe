"""Checks of a run before any fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.checks import Net, mlp
from tutelage.data import Data
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run

# --- checks of a run before any fit


def run_with(data: Data, student: Callable[[], Tapped], *teachers: Tapped) -> Run:
    return Run(data, student, teachers)


def test_missing_teacher_is_refused_with_the_option_that_sets_it(
    tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("needs a teacher", "--teacher", "teacher=..."):
        run_with(tiny_data, tiny_model).teacher()


def test_single_teacher_method_refuses_two_teachers(
    tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    with refused("got 2", "give it one"):
        run_with(tiny_data, tiny_model, tiny_model(1), tiny_model(2)).teacher()


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_stages_of_a_network_without_feature_maps_are_refused(
    network: str, tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    networks = {"student": tiny_model(), "teacher": tiny_model(1)} | {network: mlp()}
    with refused(f"the {network}, Sequential", "no feature maps", "embedding", "roles="):
        run_with(tiny_data, tiny_model).paired_stages(networks["student"], networks["teacher"])


def test_stages_are_paired_from_the_last(tiny_data: Data, tiny_model: Net) -> None:
    from tutelage.models.load import make_model

    resnet = Tapped(make_model("resnet8", num_classes=4, input_shape=(1, 8, 8)).module)
    run = run_with(tiny_data, tiny_model)
    assert run.paired_stages(tiny_model(), resnet) == (("stage1", "stage2"), ("stage2", "stage3"))
    assert run.paired_stages(resnet, tiny_model()) == (("stage2", "stage1"), ("stage3", "stage2"))


def test_unknown_recipe_field_of_a_fit_is_refused(
    tiny_data: Data, tiny_model: Net, refused: Callable[..., Any]
) -> None:
    run = run_with(tiny_data, tiny_model)
    with refused("'epoch'", "did you mean 'epochs'"):
        run.fit(Learner(run.student(), None, {"ce": CrossEntropy()}), epoch=3)


def test_numbered_students_depend_only_on_seed_and_number(tiny_data: Data, changed: Callable[..., set[str]]) -> None:
    def make_student() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))

    states = {}
    for seed in (0, 1):
        run = Run(tiny_data, make_student, seed=seed)
        torch.rand(5)
        before = torch.get_rng_state()
        states[seed] = [run.student(number).state_dict() for number in (0, 1, 0)]
        assert torch.equal(before, torch.get_rng_state())
        assert changed(states[seed][0], states[seed][2]) == set()
        assert changed(states[seed][0], states[seed][1])
    assert changed(states[0][0], states[1][0])
