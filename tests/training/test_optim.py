"""Learning-rate schedules, optimizers and the checks of recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.config import Recipe
from tutelage.errors import TutelageError
from tutelage.training.optim import lr_factor, make_optimizer

STEPS = 391  # an epoch of CIFAR at batch 128


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


# --- learning-rate schedules


@pytest.mark.parametrize(("drop", "before", "after"), [(60, 1, 0.2), (120, 0.2, 0.04), (160, 0.04, 0.008)])
def test_default_milestones_lower_the_rate_exactly_at_their_epochs(drop: int, before: float, after: float) -> None:
    recipe = Recipe(epochs=200)
    assert lr_factor(recipe, drop * STEPS - 1, STEPS) == pytest.approx(before, rel=1e-12)
    assert lr_factor(recipe, drop * STEPS, STEPS) == pytest.approx(after, rel=1e-12)


def test_step_schedule_has_exactly_three_drops() -> None:
    factors = [lr_factor(Recipe(epochs=200), step, STEPS) for step in range(200 * STEPS)]
    drops = [step / STEPS for step, pair in enumerate(pairwise(factors), 1) if pair[0] != pair[1]]
    assert drops == [60, 120, 160]
    assert factors[0] == 1


def test_custom_milestones_and_gamma() -> None:
    recipe = Recipe(epochs=4, milestones=(0.5,), gamma=0.1)
    assert [lr_factor(recipe, step, 1) for step in range(4)] == [1, 1, 0.1, 0.1]


def test_cosine_schedule_equals_its_closed_form() -> None:
    recipe = Recipe(epochs=10, schedule="cosine")
    for step in range(70):
        assert lr_factor(recipe, step, 7) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * step / 70), abs=1e-12)


def test_constant_schedule() -> None:
    assert {lr_factor(Recipe(epochs=3, schedule="constant"), step, 5) for step in range(15)} == {1.0}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_warmup_is_linear_and_does_not_change_the_later_schedule(schedule: Any) -> None:
    cold, warm = (Recipe(epochs=10, schedule=schedule, warmup=w) for w in (0.0, 2.5))
    for step in range(40):
        rise = min(1.0, (step + 1) / 10)  # 2.5 epochs of 4 steps
        assert lr_factor(warm, step, 4) == pytest.approx(rise * lr_factor(cold, step, 4), rel=1e-12)
    assert lr_factor(warm, 0, 4) > 0


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5), (10, 1), (3, 39), (20, 391)])
def test_the_one_cycle_schedule_equals_torchs(epochs: int, steps: int) -> None:
    recipe = Recipe(epochs=epochs, schedule="one-cycle", lr=0.4)
    optimizer = torch.optim.SGD(weights(), lr=1.0, momentum=0.9)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=epochs * steps, cycle_momentum=False)
    for step in range(epochs * steps):
        expected = optimizer.param_groups[0]["lr"]
        assert recipe.lr * lr_factor(recipe, step, steps) == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        if step + 1 < epochs * steps:
            oracle.step()


def test_one_cycle_rises_for_three_tenths_of_the_run_and_falls_to_nearly_nothing() -> None:
    recipe = Recipe(epochs=10, schedule="one-cycle")
    factors = [lr_factor(recipe, step, 100) for step in range(1000)]
    assert (factors[0], max(factors), factors[-1]) == pytest.approx((1 / 25, 1, 1 / 250_000))
    assert factors.index(max(factors)) == 299
    assert factors[:300] == sorted(factors[:300])
    assert factors[299:] == sorted(factors[299:], reverse=True)


def test_one_cycle_has_a_warm_up_of_its_own(refused: Any) -> None:
    with refused("warmup=2", "one-cycle", "leave warmup out"):
        Recipe(schedule="one-cycle", warmup=2)


# --- optimizers


def test_sgd_gets_all_its_fields() -> None:
    optimizer = make_optimizer(Recipe(lr=0.3, momentum=0.8, weight_decay=0.01), weights())
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.8, True, 0.01)


def test_nesterov_is_disabled_without_momentum() -> None:
    assert make_optimizer(Recipe(momentum=0), weights()).param_groups[0]["nesterov"] is False


@pytest.mark.parametrize("name", ["AdamW", "adamw", "ADAMW"])
def test_optimizer_name_is_case_insensitive(name: str) -> None:
    optimizer = make_optimizer(Recipe(optimizer=name, lr=0.01, weight_decay=0.02), weights())
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.01, 0.02)


def test_rmsprop_gets_momentum_without_nesterov() -> None:
    optimizer = make_optimizer(Recipe(optimizer="RMSprop", momentum=0.7), weights())
    assert type(optimizer) is torch.optim.RMSprop
    assert optimizer.param_groups[0]["momentum"] == 0.7
    assert "nesterov" not in optimizer.param_groups[0]


def test_unknown_optimizer_is_refused_with_the_nearest_name(refused: Callable[..., Any]) -> None:
    with refused("'AdmaW'", "did you mean 'AdamW'?", "RMSprop"):
        make_optimizer(Recipe(optimizer="AdmaW"), weights())


@pytest.mark.parametrize("name", ["LBFGS", "sparseadam"])
def test_unsupported_optimizer_is_refused(name: str, refused: Callable[..., Any]) -> None:
    with refused(name, "SGD", "AdamW"):
        make_optimizer(Recipe(optimizer=name), weights())


def test_error_of_an_optimizer_is_one_line(refused: Callable[..., Any]) -> None:
    with refused("Muon", "2D", "choose another"):
        make_optimizer(Recipe(optimizer="Muon"), weights())


def test_optimizer_factory_gets_the_parameters() -> None:
    parameters = weights()
    optimizer = make_optimizer(Recipe(optimizer=lambda p: torch.optim.Adagrad(p, lr=0.7)), parameters)
    assert type(optimizer) is torch.optim.Adagrad
    assert optimizer.param_groups[0]["params"][0] is parameters[0]
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_factory_that_returns_no_optimizer_is_refused(refused: Callable[..., Any]) -> None:
    with refused("factory", "dict"):
        make_optimizer(Recipe(optimizer=lambda parameters: {}), weights())


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"milestones": (0.6, 0.3)}, ("milestones", "increasing", "0.6")),
        ({"milestones": (0.5, 1.0)}, ("milestones", "between 0 and 1")),
        ({"lr": 0}, ("lr", "greater than 0", "0")),
        ({"lr": float("nan")}, ("lr", "finite", "nan")),
        ({"momentum": 1.0}, ("momentum", "less than 1")),
        ({"schedule": "linear"}, ("schedule", "'cosine'", "'linear'")),
        ({"clip": -1}, ("clip", "greater than 0")),
        ({"leraning_rate": 1}, ("'leraning_rate'", "lr")),
    ],
)
def test_recipe_refuses_invalid_values(
    fields: dict[str, Any], fragments: tuple[str, ...], refused: Callable[..., Any]
) -> None:
    with refused(*fragments):
        Recipe(**fields)


def test_recipe_is_frozen_and_replace_checks_values() -> None:
    recipe = Recipe(epochs=3)
    with pytest.raises(Exception, match="frozen"):
        recipe.epochs = 4  # type: ignore[misc]
    assert recipe.replace(epochs=5).epochs == 5
    assert recipe.epochs == 3
    with pytest.raises(TutelageError, match="epochs"):
        recipe.replace(epochs=0)


def test_parameter_may_get_its_first_gradient_after_others() -> None:
    """As in torch's loop over parameters, a momentum buffer starts at the first gradient."""
    recipe = Recipe(optimizer="SGD", lr=0.1, momentum=0.9, weight_decay=0.01)
    results = []
    for make in (
        make_optimizer,
        lambda recipe, p: torch.optim.SGD(
            p, 0.1, 0.9, weight_decay=0.01, nesterov=recipe.nesterov, fused=False, foreach=False
        ),
    ):
        first, second = (nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0))
        optimizer = make(recipe, [first, second])
        for step in range(4):
            optimizer.zero_grad(set_to_none=True)
            (first.square() + (second.square() if step >= 2 else 0.0)).sum().backward()
            optimizer.step()
            if step == 1:
                assert second.item() == 2.0
        results.append((first.item(), second.item()))
    assert results[0] == pytest.approx(results[1])
