"""The method uniform_width: the cost of the student, and which units remain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_model
from tutelage.training import Run

RECIPE = Recipe(epochs=1, batch_size=16, lr=1e-9, weight_decay=0.0)


@pytest.fixture
def make_run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Run]:
    def make(teacher: Tapped, **options: Any) -> Run:
        options = {"data": tiny_data, "student": lambda: tiny_model(2, width=12), "recipe": RECIPE, **options}
        return Run(teachers=(teacher,), hardware=on_cpu, **options)

    return make


@pytest.mark.parametrize("target", [0.25, 0.5, 0.8])
def test_cost_is_just_below_the_target(make_run: Callable[..., Run], tiny_model: Any, target: float) -> None:
    teacher, images = tiny_model(2, width=12), torch.rand(1, 1, 8, 8)
    for resource in ("flops", "parameters"):
        student = find("uniform_width")(make_run(teacher), resource=resource, target=target)
        before, after = (
            flops(model, images) if resource == "flops" else parameters(model) for model in (teacher, student)
        )
        assert target - 0.12 < after / before <= target  # one unit of a layer of 12 is up to a tenth of the cost
        widths = {student.module.conv1.out_channels / 12, student.module.conv2.out_channels / 24}
        assert max(widths) - min(widths) < 0.1


def test_largest_filters_of_the_teacher_remain(make_run: Callable[..., Run], tiny_model: Any) -> None:
    teacher = tiny_model(0, width=12)
    with torch.no_grad():
        teacher.module.conv1.weight[::2] *= 100
    run = make_run(teacher)
    student = find("uniform_width")(run, target=0.3, start="teacher")
    norms = teacher.module.conv1.weight.flatten(1).abs().sum(1)
    count = student.module.conv1.out_channels
    expected = teacher.module.conv1.weight[norms.argsort(descending=True)[:count].sort().values]
    torch.testing.assert_close(student.module.conv1.weight, expected)
    assert run.notes["widths"][0] == count < 12 == run.notes["widths_before"][0]


def test_the_teachers_normalisation_comes_with_its_weights(
    make_run: Callable[..., Run], tiny_data: Data, tiny_model: Any
) -> None:
    teacher = tiny_model(0, width=12).with_normalisation((0.2,), (0.7,))
    assert not teacher.has_normalisation(*tiny_data.mean_std)
    assert find("uniform_width")(make_run(teacher), start="teacher").has_normalisation((0.2,), (0.7,))
    assert find("uniform_width")(make_run(teacher)).has_normalisation(*tiny_data.mean_std)


def test_what_cannot_be_reached_is_refused(make_run: Callable[..., Run], tiny_model: Any, refused: Any) -> None:
    with refused("cannot be reduced to 0.001", "choose a larger target"):
        find("uniform_width")(make_run(tiny_model(0, width=12)), target=0.001)
    network = tiny_model(0, width=12)
    network.module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with refused("Sequential has no units that can be removed"):
        find("uniform_width")(make_run(tiny_model(0), student=lambda: network))
    with refused("another network", "start=initial"):
        find("uniform_width")(make_run(tiny_model(0, width=6)), start="teacher")


def test_student_can_be_opened_again(tmp_path: Path) -> None:
    teacher = tutelage.train("resnet8x0.5", "digits", per_class=12, epochs=1, out=tmp_path / "teacher", device="cpu")
    student = tutelage.distill(
        tmp_path / "teacher",
        "resnet8x0.5",
        "digits",
        method="uniform_width",
        settings={"start": "teacher"},
        per_class=12,
        epochs=1,
        out=tmp_path / "student",
        device="cpu",
    )
    data = tutelage.open_data("digits")
    again = open_model(str(tmp_path / "student"), data)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(again(images), student.model(images))
    assert parameters(again) < parameters(teacher.model)
