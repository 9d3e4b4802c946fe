"""The method norm_loss: the norms after training, its forms, decay and resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.methods.norm_loss.loss import (
    regularized_layers,
    unit_norms,
    unit_weights,
)
from tutelage.models.tapped import Tapped
from tutelage.training import FitResult, Learner, Run

Net = Callable[..., Tapped]


def train(data: Data, net: Net, hardware: Hardware, recipe: Recipe, **settings: Any) -> tuple[Run, Tapped]:
    run = Run(data, net, recipe=recipe, hardware=hardware, seed=2)
    return run, find("norm_loss")(run, **settings)


@pytest.mark.parametrize(("optimizer", "lr", "weight"), [("SGD", 0.1, 0.3), ("AdamW", 0.02, 3.0)])
def test_norms_approach_one_and_those_of_plain_training_do_not(
    optimizer: str, lr: float, weight: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    recipe = Recipe(epochs=40, batch_size=16, optimizer=optimizer, lr=lr)
    run, student = train(tiny_data, tiny_model, on_cpu, recipe, weight=weight)
    plain = find("plain")(Run(tiny_data, tiny_model, recipe=recipe, hardware=on_cpu, seed=2))
    norms, plain_norms = (
        torch.cat(
            [unit_norms(unit_weights(layer)).detach().flatten() for layer in regularized_layers(net.module).values()]
        )
        for net in (student, plain)
    )
    assert (norms - 1).abs().mean() < 0.1
    assert (plain_norms - 1).abs().mean() > 2 * (norms - 1).abs().mean()
    assert run.notes["unit_norms"] == pytest.approx(
        {"mean": float(norms.mean()), "min": float(norms.min()), "max": float(norms.max())}
    )


def test_forms_are_equal_for_sgd_without_momentum(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(epochs=2, batch_size=16, lr=0.1, momentum=0, nesterov=False)
    coupled, free = (
        train(tiny_data, tiny_model, on_cpu, recipe, form=form, weight=0.1)[1] for form in ("coupled", "decoupled")
    )
    for a, b in zip(coupled.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "same_as"), [("SGD", "coupled"), ("sgd", "coupled"), ("AdamW", "decoupled")])
def test_form_follows_from_the_optimizer(
    optimizer: str, same_as: str, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    recipe = Recipe(epochs=1, batch_size=16, optimizer=optimizer, lr=0.01)
    states = [
        state_of(train(tiny_data, tiny_model, on_cpu, recipe, form=form)[1])
        for form in ("auto", "coupled", "decoupled")
    ]
    assert changed(states[0], states[("coupled", "decoupled").index(same_as) + 1]) == set()
    assert changed(states[1], states[2])


def test_without_weight_it_is_plain_training_without_decay(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    recipe = Recipe(epochs=2, batch_size=16, weight_decay=0.1)
    _, student = train(tiny_data, tiny_model, on_cpu, recipe, weight=0)
    without = Run(tiny_data, tiny_model, recipe=recipe.replace(weight_decay=0), hardware=on_cpu, seed=2)
    assert changed(state_of(student), state_of(find("plain")(without))) == set()


def test_other_parameters_keep_the_decay_of_the_recipe(tiny_data: Data, on_cpu: Hardware, monkeypatch: Any) -> None:
    class WithTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(1, 64))
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1) * self.table)  # type: ignore[no-any-return]

    learners: list[Learner] = []
    run = Run(tiny_data, lambda: Tapped(WithTable()), recipe=Recipe(weight_decay=0.1), hardware=on_cpu)
    monkeypatch.setattr(run, "fit", lambda learner, **_: learners.append(learner) or FitResult((), {}))
    find("norm_loss")(run)
    decays = {name: options.weight_decay for name, options in learners[0].parameter_options().items()}
    assert decays == {"fc.weight": 0.0, "fc.bias": 0.0}


@pytest.mark.parametrize("form", ["coupled", "decoupled"])
def test_resumed_run_equals_an_uninterrupted_one(
    form: str, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for folder, stops in (("uninterrupted", [None]), ("stopped", [1, 2, None])):
        for stop in stops:

            def report(record: dict[str, Any], stop: int | None = stop) -> None:
                if record["epoch"] == stop:
                    raise KeyboardInterrupt

            recipe = Recipe(epochs=3, batch_size=16, optimizer="AdamW", lr=0.01, warmup=1)
            run = Run(
                tiny_data,
                tiny_model,
                recipe=recipe,
                hardware=on_cpu,
                folder=tmp_path / folder,
                report=report,
            )
            try:
                student = find("norm_loss")(run, form=form)
            except KeyboardInterrupt:
                continue
        states.append(state_of(student))
    assert changed(*states) == set()


def test_invalid_settings_are_refused(tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    for wrong in ({"weight": -1}, {"form": "both"}):
        with refused(*wrong, *map(str, wrong.values())):
            find("norm_loss")(Run(tiny_data, tiny_model), **wrong)
