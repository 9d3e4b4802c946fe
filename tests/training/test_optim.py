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


# --- the course of the learning rate


@pytest.mark.parametrize(("drop", "before", "after"), [(60, 1, 0.2), (120, 0.2, 0.04), (160, 0.04, 0.008)])
def test_the_papers_steps_fall_exactly_at_their_epochs(drop: int, before: float, after: float) -> None:
    recipe = Recipe(epochs=200)
    assert lr_factor(recipe, drop * STEPS - 1, STEPS) == pytest.approx(before, rel=1e-12)
    assert lr_factor(recipe, drop * STEPS, STEPS) == pytest.approx(after, rel=1e-12)


def test_steps_have_their_three_drops_and_no_others() -> None:
    factors = [lr_factor(Recipe(epochs=200), step, STEPS) for step in range(200 * STEPS)]
    drops = [step / STEPS for step, pair in enumerate(pairwise(factors), 1) if pair[0] != pair[1]]
    assert drops == [60, 120, 160]
    assert factors[0] == 1


def test_own_milestones_and_gamma() -> None:
    recipe = Recipe(epochs=4, milestones=(0.5,), gamma=0.1)
    assert [lr_factor(recipe, step, 1) for step in range(4)] == [1, 1, 0.1, 0.1]


def test_cosine_is_its_closed_form() -> None:
    recipe = Recipe(epochs=10, schedule="cosine")
    for step in range(70):
        assert lr_factor(recipe, step, 7) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * step / 70), abs=1e-12)


def test_constant_stays() -> None:
    assert {lr_factor(Recipe(epochs=3, schedule="constant"), step, 5) for step in range(15)} == {1.0}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone(schedule: Any) -> None:
    cold, warm = (Recipe(epochs=10, schedule=schedule, warmup=w) for w in (0.0, 2.5))
    for step in range(40):
        rise = min(1.0, (step + 1) / 10)  # 2.5 epochs of 4 steps
        assert lr_factor(warm, step, 4) == pytest.approx(rise * lr_factor(cold, step, 4), rel=1e-12)
    assert lr_factor(warm, 0, 4) > 0


# --- optimisers


def test_sgd_is_given_every_field_it_takes() -> None:
    made = make_optimizer(Recipe(lr=0.3, momentum=0.8, weight_decay=0.01), weights())
    assert type(made) is torch.optim.SGD
    group = made.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.8, True, 0.01)


def test_nesterov_needs_momentum_and_is_left_out_without() -> None:
    assert make_optimizer(Recipe(momentum=0), weights()).param_groups[0]["nesterov"] is False


@pytest.mark.parametrize("name", ["AdamW", "adamw", "ADAMW"])
def test_a_name_may_be_written_in_any_case(name: str) -> None:
    made = make_optimizer(Recipe(optimizer=name, lr=0.01, weight_decay=0.02), weights())
    assert type(made) is torch.optim.AdamW
    assert (made.param_groups[0]["lr"], made.param_groups[0]["weight_decay"]) == (0.01, 0.02)


def test_rmsprop_is_given_momentum_and_no_nesterov() -> None:
    made = make_optimizer(Recipe(optimizer="RMSprop", momentum=0.7), weights())
    assert type(made) is torch.optim.RMSprop
    assert made.param_groups[0]["momentum"] == 0.7
    assert "nesterov" not in made.param_groups[0]


def test_an_unknown_name_is_answered_with_the_nearest(refused: Callable[..., Any]) -> None:
    with refused("'AdmaW'", "did you mean 'AdamW'?", "RMSprop"):
        make_optimizer(Recipe(optimizer="AdmaW"), weights())


@pytest.mark.parametrize("name", ["LBFGS", "sparseadam"])
def test_an_optimiser_that_cannot_step_here_is_refused(name: str, refused: Callable[..., Any]) -> None:
    with refused(name, "SGD", "AdamW"):
        make_optimizer(Recipe(optimizer=name), weights())


def test_what_an_optimiser_refuses_is_one_line(refused: Callable[..., Any]) -> None:
    with refused("Muon", "2D", "choose another"):
        make_optimizer(Recipe(optimizer="Muon"), weights())


def test_a_factory_is_given_the_parameters() -> None:
    ours = weights()
    made = make_optimizer(Recipe(optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=0.7)), ours)
    assert type(made) is torch.optim.Adagrad
    assert made.param_groups[0]["params"][0] is ours[0]
    assert made.param_groups[0]["lr"] == 0.7


def test_a_factory_of_something_else_is_refused(refused: Callable[..., Any]) -> None:
    with refused("factory", "dict"):
        make_optimizer(Recipe(optimizer=lambda parameters: {}), weights())


@pytest.mark.parametrize(
    ("fields", "pieces"),
    [
        ({"milestones": (0.6, 0.3)}, ("milestones", "rising", "0.6")),
        ({"milestones": (0.5, 1.0)}, ("milestones", "between 0 and 1")),
        ({"lr": 0}, ("lr", "greater than 0", "0")),
        ({"lr": float("nan")}, ("lr", "finite", "nan")),
        ({"momentum": 1.0}, ("momentum", "less than 1")),
        ({"schedule": "linear"}, ("schedule", "'cosine'", "'linear'")),
        ({"clip": -1}, ("clip", "greater than 0")),
        ({"leraning_rate": 1}, ("'leraning_rate'", "lr")),
    ],
)
def test_a_recipe_refuses_what_cannot_be(
    fields: dict[str, Any], pieces: tuple[str, ...], refused: Callable[..., Any]
) -> None:
    with refused(*pieces):
        Recipe(**fields)


def test_a_recipe_is_frozen_and_but_checks_again() -> None:
    recipe = Recipe(epochs=3)
    with pytest.raises(Exception, match="frozen"):
        recipe.epochs = 4  # type: ignore[misc]
    assert recipe.replace(epochs=5).epochs == 5
    assert recipe.epochs == 3
    with pytest.raises(TutelageError, match="epochs"):
        recipe.replace(epochs=0)


def test_a_parameter_may_get_its_first_gradient_later_than_others() -> None:
    """Its course is that of torch's own loop over the parameters, which begins a momentum where there is none."""
    recipe = Recipe(optimizer="SGD", lr=0.1, momentum=0.9, weight_decay=0.01)
    courses = []
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
        courses.append((first.item(), second.item()))
    assert courses[0] == pytest.approx(courses[1])
