"""The methods that add a later loss of the field to labels: what they train, in which stage, and that it teaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.losses import decoupled_soft_targets, refined_soft_targets
from tutelage.methods import find
from tutelage.models.networks.resnet import ResNet
from tutelage.models.tapped import Tapped
from tutelage.training import FitResult, Learner, Run

Net = Callable[..., Tapped]
LONGER = Recipe(epochs=12, batch_size=16, lr=0.02, schedule="constant")


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest) -> dict[str, Tapped]:
    return {}


@pytest.fixture
def teacher(trained: dict[str, Tapped], tiny_model: Net, tiny_data: Data, on_cpu: Hardware) -> Tapped:
    """A network of another width that knows the classes."""
    if "teacher" not in trained:
        recipe = LONGER.replace(epochs=30, lr=0.05)
        run = Run(tiny_data, lambda: tiny_model(3, width=8), recipe=recipe, hardware=on_cpu, seed=1)
        trained["teacher"] = find("plain")(run)
        assert accuracy(run, trained["teacher"], tiny_data) > 0.9
    return trained["teacher"]


def accuracy(run: Run, model: Tapped, data: Data) -> float:
    predictions = run.predict(model, data.test).argmax(1)
    return float((predictions == data.test.labels).float().mean())


class _Recording(Run):
    """A run that records the state of its student and the teachers before and after each fit."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.learners: list[Learner] = []
        self.states: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        (learner,) = learners
        before = {name: value.clone() for name, value in learner.model.state_dict().items()}
        result = super().fit(*learners, **options)
        after = {name: value.clone() for name, value in learner.model.state_dict().items()}
        self.learners.append(learner)
        self.states.append((before, after))
        return result


def make_run(data: Data, tiny_model: Net, hardware: Hardware, *teachers: Tapped, recipe: Recipe = LONGER) -> _Recording:
    def student() -> Tapped:
        return tiny_model(int(torch.randint(9999, ())), width=4)

    return _Recording(data, student, teachers, recipe=recipe, hardware=hardware, seed=2)


TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "dist": ("inter", {}),
    "logit_standardization": ("standardized", {}),
    "mlkd": ("kd 4", {}),
    "pkt": ("pkt", {}),
    "nst": ("nst", {}),
    "cc": ("cc", {}),
    "vid": ("vid", {}),
    "reviewkd": ("review", {"warmup": 0.0}),
    "ft": ("factors", {}),
    "ofd": ("overhaul", {}),
    "tf_kd": ("virtual", {}),
}


@pytest.mark.parametrize("method", TERMS)
def test_loss_is_less_than_for_student_without_teacher(
    method: str, teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware
) -> None:
    """The second student has the same weights, batches and labels, and a distillation weight near 0."""
    term, settings = TERMS[method]
    names = find(method).settings.model_fields
    weights = [name for name in ("weight", "alpha", "beta", "instance", "correlations") if name in names]
    values = []
    for factor in (1.0, 1e-6):
        run = make_run(tiny_data, tiny_model, on_cpu, teacher)
        defaults = find(method).check(settings)
        find(method)(run, **(settings | {name: factor * defaults[name] for name in weights}))
        values.append(run.fits[-1].history[-1]["learners"]["student"][term])
    distilled, plain = values
    assert distilled < plain


@pytest.mark.parametrize("method", ["dist", "logit_standardization", "mlkd"])
def test_student_learns_classes_from_teacher_alone(
    method: str, teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware
) -> None:
    no_labels = replace(tiny_data.train, labels=torch.full_like(tiny_data.train.labels, -1))
    data = replace(tiny_data, train=no_labels)
    run = make_run(data, tiny_model, on_cpu, teacher, recipe=LONGER.replace(epochs=40, lr=0.05))
    student = find(method)(run, ce=0.0)
    assert accuracy(run, student, tiny_data) > 0.7  # chance is 0.25


@pytest.mark.parametrize(("method", "loss"), [("dkd", decoupled_soft_targets), ("rld", refined_soft_targets)])
def test_decoupled_loss_is_less_than_for_student_without_teacher(
    method: str, loss: Any, teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware
) -> None:
    students = [find(method)(make_run(tiny_data, tiny_model, on_cpu, teacher)) for method in (method, "plain")]
    run = make_run(tiny_data, tiny_model, on_cpu, teacher)
    distilled, plain = (
        loss(run.predict(student, tiny_data.test), run.predict(teacher, tiny_data.test), tiny_data.test.labels).mean()
        for student in students
    )
    assert distilled < plain


@pytest.mark.parametrize("method", ["dkd", "rld"])
def test_decoupled_loss_grows_over_warmup(
    method: str, teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware
) -> None:
    run = make_run(tiny_data, tiny_model, on_cpu, teacher, recipe=LONGER.replace(epochs=2))
    find(method)(run, warmup=0.5)
    weighted = run.learners[0].terms[method]
    assert [weighted.at(progress) for progress in (0.0, 0.25, 0.5, 0.9)] == [0.0, 0.5, 1.0, 1.0]


def test_factor_transfer_trains_its_paraphraser_first_and_leaves_the_student_unchanged(
    teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware, changed: Any
) -> None:
    run = make_run(tiny_data, tiny_model, on_cpu, teacher)
    find("ft")(run, share=0.5)
    first, second = run.fits
    assert [len(fit.history) for fit in run.fits] == [6, 6]
    assert changed(*run.states[0]) == set()
    assert changed(*run.states[1])
    errors = [epoch["learners"]["student"]["paraphrase"] for epoch in first.history]
    assert errors[-1] < 0.8 * errors[0]
    assert "factors" in second.history[-1]["learners"]["student"]


def test_overhaul_reads_maps_before_the_relu_and_refuses_a_teacher_without_them(
    teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware, refused: Any
) -> None:
    recipe = LONGER.replace(epochs=1)
    run = make_run(tiny_data, tiny_model, on_cpu, Tapped(ResNet(8, 4, 1, 0.25)), recipe=recipe)
    find("ofd")(run)
    term = run.learners[0].terms["overhaul"].term
    assert term.teacher_roles == ("preactivation2", "preactivation3")
    assert all((margin.mean < 0).any() for margin in term.margins)  # type: ignore[union-attr]
    functional = Tapped(nn.Sequential(_Functional(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)))
    with refused("before the ReLU", "stage1 of the teacher, Sequential, ends in a function", "preactivation1"):
        find("ofd")(make_run(tiny_data, tiny_model, on_cpu, functional, recipe=recipe))


class _Functional(nn.Module):
    """A convolution and a ReLU that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convolution(x))


def test_boundaries_are_learned_first_and_below_the_classifier(
    teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware, changed: Any
) -> None:
    run = make_run(tiny_data, tiny_model, on_cpu, teacher)
    find("ab")(run, share=0.5)
    (before, after), _ = run.states
    moved = changed(before, after)
    assert any("conv2" in name for name in moved)
    assert not any("fc" in name for name in moved)
    values = [epoch["learners"]["student"]["boundaries"] for epoch in run.fits[0].history]
    assert values[-1] < values[0]


def test_teacher_of_each_generation_is_the_previous_one(tiny_model: Net, tiny_data: Data, on_cpu: Hardware) -> None:
    run = make_run(tiny_data, tiny_model, on_cpu, recipe=LONGER.replace(epochs=2))
    student = find("born_again")(run, generations=2)
    first, second, third = run.learners
    assert first.source is None
    assert second.source is not None
    assert third.source is not None
    assert second.source.models == (first.model,)
    assert third.source.models == (second.model,)
    assert student is third.model
    assert len({id(learner.model) for learner in run.learners}) == 3


@pytest.mark.parametrize(
    ("method", "settings"),
    [("dist", {}), ("mlkd", {}), ("pkt", {}), ("cc", {})],
)
def test_single_samples_are_refused_where_batches_are_compared(
    method: str, settings: Any, teacher: Tapped, tiny_model: Net, tiny_data: Data, on_cpu: Hardware, refused: Any
) -> None:
    run = make_run(tiny_data, tiny_model, on_cpu, teacher, recipe=Recipe(epochs=1, batch_size=1))
    with refused("use a batch size of 2 or more"):
        find(method)(run, **settings)
