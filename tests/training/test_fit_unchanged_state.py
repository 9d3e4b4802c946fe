"""What a fit must not compute or change: unused terms, frozen parameters, teachers, random numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.fits import Changed, Net, Probe, StateOf
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Source
from tutelage.terms import CrossEntropy, Hint, SoftTargets
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution
from tutelage.training.learner import ForwardPass

# --- weights, schedules and skipped computation


def test_weight_schedule_gets_progress_from_0_to_1(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    values: list[float] = []

    def weight(progress: float) -> float:
        values.append(progress)
        return 1.0

    recipe = Recipe(epochs=2, batch_size=16)
    fit(
        Learner(tiny_model(), None, {"ce": weight * CrossEntropy()}),
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
    )
    assert sorted(set(values)) == pytest.approx([step / 6 for step in range(6)])


class RecordingSource(Source):
    """A source that records the roles of every request."""

    def __init__(self, inner: Frozen) -> None:
        self.inner, self.requests = inner, list[tuple[str, ...]]()

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Any) -> Outputs:
        if torch.is_grad_enabled():
            self.requests.append(tuple(roles))
        return self.inner(batch, roles, cohort)


def test_term_of_weight_0_is_not_computed(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    def raise_error(*_: object) -> None:
        raise AssertionError("computed")

    source = RecordingSource(Frozen(tiny_model(seed=1)))
    terms = {"ce": CrossEntropy(), "x": 0 * Probe(raise_error, teacher_roles=("stage1",)), "kd": 0.0 * SoftTargets()}
    fit_result = fit(Learner(tiny_model(), source, terms), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert source.requests == []
    assert fit_result.history[0]["learners"]["student"]["x"] == 0


def test_teacher_computes_only_the_roles_of_terms_with_nonzero_weight(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    source = RecordingSource(Frozen(tiny_model(seed=1)))
    later = Probe(lambda *_: None, teacher_roles=("stage1",))
    terms = {
        "ce": CrossEntropy(),
        "kd": (lambda progress: float(progress < 0.5)) * SoftTargets(),
        "x": (lambda progress: float(progress >= 0.5)) * later,
    }
    fit(Learner(tiny_model(), source, terms), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert source.requests == [("logits",)] * 3 + [("stage1",)] * 3


def test_fit_with_only_terms_of_weight_0_changes_only_running_statistics(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    before = state_of(model)
    fit(Learner(model, None, {"ce": 0 * CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert all("running" in name or "tracked" in name for name in changed(before, state_of(model)))


# --- trainable and frozen parameters


def test_parameters_outside_trainable_and_their_statistics_do_not_change(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    before = state_of(model)

    def upper(name: str) -> bool:
        return name.startswith(("conv2", "bn2", "fc"))

    fit(
        Learner(model, None, {"ce": CrossEntropy()}, trainable=upper),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    updated_names = {name.removeprefix("module.") for name in changed(before, state_of(model))}
    names = {name.removeprefix("module.") for name in before}
    assert updated_names == {name for name in names if upper(name)}
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for name, p in model.module.named_parameters() if not upper(name))


def test_frozen_parameters_stay_frozen_without_a_predicate(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    model.module.get_submodule("conv1").requires_grad_(False)
    before = state_of(model)
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    updated_names = changed(before, state_of(model))
    assert "module.conv1.weight" not in updated_names
    assert "module.conv2.weight" in updated_names
    assert [n for n, p in model.module.named_parameters() if not p.requires_grad] == ["conv1.weight"]


def test_feature_terms_do_not_change_later_layers(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model, teacher = tiny_model(), tiny_model(seed=1, width=6)
    before = state_of(model)
    fit_result = fit(
        Learner(model, Frozen(teacher), {"hint": Hint("stage1", "stage1", "mean")}),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    updated_names = {name.removeprefix("module.") for name in changed(before, state_of(model))}
    assert updated_names == {
        name.removeprefix("module.") for name in before if name.startswith(("module.conv1", "module.bn1"))
    }
    assert set(fit_result.history[0]["learners"]["student"]) == {"hint"}  # no accuracy of untrained logits
    assert fit_result.selected == {}


def test_parameters_of_terms_are_trained(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    term = Hint("stage1", "stage1", "mean")
    learner = Learner(tiny_model(), Frozen(tiny_model(seed=1, width=6)), {"hint": term})
    weights: list[Tensor] = []
    fit(
        learner,
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
        report=lambda _: weights.append(term.regressor.weight.detach().clone()),  # type: ignore[union-attr,operator]
    )
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("layer", ["", "module.bn2"])
def test_learners_are_in_train_mode_at_every_step(
    layer: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    model, modes = tiny_model(), list[bool]()

    def disturb(*_: object) -> None:
        modes.append(all(module.training for module in model.modules()))
        model.get_submodule(layer).eval()  # as a user's term or callback might

    term = Probe(disturb)
    fit(
        Learner(model, None, {"ce": CrossEntropy(), "x": term}),
        data=tiny_data,
        recipe=Recipe(epochs=2, batch_size=16),
        execution=Execution.on(on_cpu),
        report=lambda _: model.eval() and None,
    )
    assert modes == [True] * 6


def test_custom_train_method_may_keep_layers_in_eval_mode(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    class FixedStatistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_model().module

        def train(self, mode: bool = True) -> FixedStatistics:
            super().train(mode)
            self.net.get_submodule("bn1").eval()
            return self

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.net(inputs)
            return logits

    model = Tapped(FixedStatistics())
    before = state_of(model)
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    updated_names = {name.removeprefix("module.net.") for name in changed(before, state_of(model)) if "running" in name}
    assert updated_names == {"bn2.running_mean", "bn2.running_var"}


def test_teacher_stays_in_eval_mode_and_unchanged(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    teacher = tiny_model(seed=1)
    before = state_of(teacher)
    terms = {"kd": SoftTargets(), "x": Probe(lambda *_: teacher.train() and None)}
    fit(Learner(tiny_model(), Frozen(teacher), terms), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert changed(before, state_of(teacher)) == set()
    assert all(p.grad is None for p in teacher.parameters())


# --- factors that must not change training


def fit_with_dropout(data: Data, model: Tapped, hardware: Hardware, **terms: Any) -> Tapped:
    learner = Learner(model, EMA(model, 0.5), {"ce": CrossEntropy(), "kd": SoftTargets()} | terms)
    fit(learner, data=data, recipe=Recipe(epochs=3, batch_size=16), execution=Execution.on(hardware))
    return model


def test_validation_does_not_change_training(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: StateOf, changed: Changed
) -> None:
    with_validation = fit_with_dropout(tiny_data, tiny_model(dropout=0.3), on_cpu)
    without_validation = fit_with_dropout(replace(tiny_data, validation=None), tiny_model(dropout=0.3), on_cpu)
    assert changed(state_of(with_validation), state_of(without_validation)) == set()


def test_building_an_unused_regressor_does_not_change_training(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: StateOf, changed: Changed
) -> None:
    """Building a regressor draws random numbers, which must not affect dropout."""
    without_term = fit_with_dropout(tiny_data, tiny_model(dropout=0.3), on_cpu)
    unused_term = 0 * Hint("stage1", "stage1", "mean", "always")
    with_regressor = fit_with_dropout(tiny_data, tiny_model(dropout=0.3), on_cpu, unused=unused_term)
    assert unused_term.term.regressor is not None  # type: ignore[attr-defined]
    assert changed(state_of(with_regressor), state_of(without_term)) == set()


def test_seed_determines_batches_and_dropout(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    states = []
    for seed in (0, 0, 1):
        model = tiny_model(dropout=0.3)
        torch.rand(seed + 1)  # earlier draws must not matter
        fit(
            Learner(model, None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=short,
            execution=Execution.on(on_cpu),
            seed=seed,
        )
        states.append(state_of(model))
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


class BackboneAndHead(nn.Module):
    """A backbone with batch normalisation and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(4, affine=False)
        )
        self.head = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_fully_frozen_layers_stay_in_eval_mode(
    tiny_data: Data, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = Tapped(BackboneAndHead())
    model.module.get_submodule("backbone").requires_grad_(False)
    before = state_of(model)
    modes: dict[str, bool] = {}

    def look(forward_pass: ForwardPass, progress: float) -> Tensor:
        modes.update((name, module.training) for name, module in model.module.named_modules())
        return torch.ones(len(forward_pass.batch))

    learner = Learner(model, None, {"ce": CrossEntropy()}, sample_weight=look)
    fit(learner, data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    assert not any(name.startswith("module.backbone") for name in changed(before, state_of(model)))
    assert {name for name, training in modes.items() if not training} == {
        "backbone", *(f"backbone.{number}" for number in range(5))
    }  # fmt: skip
    assert "module.head.0.running_mean" in changed(before, state_of(model))


def test_frozen_batch_normalisation_keeps_its_statistics(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    model = tiny_model()
    model.module.get_submodule("bn2").requires_grad_(False)
    before = state_of(model)
    fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=short, execution=Execution.on(on_cpu))
    updated_names = changed(before, state_of(model))
    assert not any(".bn2." in name for name in updated_names)
    assert {"module.bn1.running_mean", "module.conv2.weight"} <= updated_names
