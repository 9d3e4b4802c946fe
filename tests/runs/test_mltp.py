"""The method mltp: its gradient in closed form and by central differences, its update rule, and its samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.methods.mltp import LookAhead, Mode
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.terms.term import Term
from tutelage.training import Learner, Run, Step
from tutelage.training.processes import Processes
from tutelage.training.updates import frozen_running_statistics

Net = Callable[..., Tapped]
MODES: tuple[Mode, ...] = get_args(Mode)


class Scalar(nn.Module):
    """A network whose output is its only parameter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), 1)


class Quadratic(Term):
    """(z - y)^2 / 2."""

    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        assert batch is not None
        return (student["logits"].squeeze(1) - batch.targets).square() / 2


def batch(targets: Tensor, inputs: Tensor | None = None) -> Batch:
    inputs = torch.zeros(len(targets), 1, 2, 3, dtype=torch.float64) if inputs is None else inputs
    return Batch(inputs, targets, torch.arange(len(targets)), None)


def small(*layers: nn.Module) -> Tapped:
    """Six inputs, 8 units, three classes; float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return (
            Tapped(nn.Sequential(nn.Flatten(), nn.Linear(6, 8), *layers, nn.Tanh(), nn.Linear(8, 3))).double().train()
        )


class World:
    """A network with two batches of five images; float64."""

    def __init__(self, model: Tapped | None = None, *, same: bool = False) -> None:
        generator = torch.Generator().manual_seed(3)
        self.model = small() if model is None else model
        dtype = next(self.model.parameters()).dtype
        images = torch.rand(2, 5, 1, 2, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.batch = batch(torch.tensor([0, 2, 1, 1, 0]), images[0])
        self.other = self.batch if same else batch(torch.tensor([1, 1, 2, 0, 0]), images[1])
        self.learner = Learner(self.model, None, {"ce": CrossEntropy()})

    def objective(self, alpha: float | None = 0.3, beta: float = 1.0, mode: Mode = "full", lr: float = 0.0) -> Tensor:
        """J, with its graph, as the rule passes it to the optimizer."""
        return objective(LookAhead(alpha, beta, mode), self.learner, self.batch, self.other, lr)

    def gradient(self, **settings: Any) -> Tensor:
        """The gradient of J in one vector; 0 for an unused parameter."""
        return flat_gradient(self.objective(**settings), list(self.model.parameters()))

    def losses(self) -> tuple[Tensor, Tensor]:
        """L_i and L_j at theta."""
        first, second = (F.cross_entropy(self.model(b.inputs), b.targets) for b in (self.batch, self.other))
        return first, second


def objective(rule: LookAhead, learner: Learner, first: Batch, second: Batch, lr: float = 0.0) -> Tensor:
    losses: list[Tensor] = []
    step = Step(
        first,
        0,
        0.0,
        [learner],
        streams={"other": lambda number: second},
        roles={learner: ("logits",)},
        apply=lambda learner, loss: losses.append(loss),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        lr={learner: lr},
    )
    rule(step)
    (loss,) = losses
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    return loss


def flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


# --- the gradient


@pytest.mark.parametrize(
    ("mode", "expected"), [("maml", 1.89), ("full", 1 + 1.89), ("first_order", 1 + 2.7), ("taylor", 1 + 3 - 0.3 * 4)]
)
def test_closed_form_of_two_quadratics(mode: Mode, expected: float) -> None:
    """L_i = (theta - 1)^2 / 2 and L_j = (theta + 1)^2 / 2 at theta = 2, alpha = 0.3.

    d/dtheta L_j(theta') = (1 - alpha)(theta - alpha (theta - a) - b) = 1.89; without the second derivative it is 2.7.
    """
    model = Tapped(Scalar(2.0))
    learner = Learner(model, None, {"quadratic": Quadratic()})
    targets = torch.ones(3, dtype=torch.float64)
    loss = objective(LookAhead(0.3, 1.0, mode), learner, batch(targets), batch(-targets))
    (gradient,) = torch.autograd.grad(loss, list(model.parameters()))
    assert float(gradient) == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alpha", [0.3, 5.0])
def test_gradient_equals_central_differences_except_for_the_first_order(mode: Mode, alpha: float) -> None:
    world, h = World(), 1e-5
    expected = []
    with torch.no_grad():
        for parameter in world.model.parameters():
            for index in range(parameter.numel()):
                value = float(parameter.view(-1)[index])
                sides = []
                for moved in (value + h, value - h):
                    parameter.view(-1)[index] = moved
                    with torch.enable_grad():
                        sides.append(float(world.objective(alpha, 0.7, mode).detach()))
                parameter.view(-1)[index] = value
                expected.append((sides[0] - sides[1]) / (2 * h))
    differences = torch.tensor(expected, dtype=torch.float64)
    error = (world.gradient(alpha=alpha, beta=0.7, mode=mode) - differences).norm() / differences.norm()
    if mode == "first_order":
        assert error > 1e-2
    else:
        assert error < 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_without_look_ahead_the_gradient_is_that_of_both_losses(mode: Mode) -> None:
    world = World()
    first, second = world.losses()
    expected = 0.7 * second if mode == "maml" else first + 0.7 * second
    torch.testing.assert_close(
        world.gradient(alpha=0.0, beta=0.7, mode=mode), flat_gradient(expected, list(world.model.parameters()))
    )


def test_first_order_gradient_is_that_of_the_stepped_network() -> None:
    """grad L_i(theta) + beta grad L_j(theta')."""
    world = World()
    first, _ = world.losses()
    parameters = list(world.model.parameters())
    gradients = torch.autograd.grad(first, parameters, retain_graph=True)
    expected = flat_gradient(first, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=0.3)
    expected = expected + 0.7 * flat_gradient(world.losses()[1], parameters)
    torch.testing.assert_close(World().gradient(alpha=0.3, beta=0.7, mode="first_order"), expected)


def test_difference_to_the_expansion_is_quadratic_in_alpha() -> None:
    world = World()
    differences = [
        float((world.objective(alpha, mode="taylor") - world.objective(alpha)).detach()) for alpha in (4e-3, 2e-3, 1e-3)
    ]
    assert differences[0] / differences[1] == pytest.approx(4, rel=0.02)
    assert differences[1] / differences[2] == pytest.approx(4, rel=0.01)


def test_objective_of_one_batch_falls_faster_than_its_loss() -> None:
    world = World(same=True)
    direction = world.gradient(alpha=0.1)
    loss = flat_gradient(world.losses()[0], list(world.model.parameters()))
    assert direction @ direction > direction @ loss > 0


def test_a_step_increases_the_agreement_of_gradients_over_that_of_two_batches() -> None:
    """The difference of both gradients points along the gradient of -<g_i, g_j>."""
    world = World()
    parameters = list(world.model.parameters())

    def agreement() -> Tensor:
        return flat_gradient_product(*world.losses(), parameters)

    difference = world.gradient(alpha=0.01) - world.gradient(alpha=0.0)
    before, slope = agreement(), flat_gradient(agreement(), parameters)
    assert float(F.cosine_similarity(-difference, slope, dim=0)) > 0.99
    with torch.no_grad():
        for parameter, part in zip(parameters, difference.split([p.numel() for p in parameters]), strict=True):
            parameter.sub_(part.view_as(parameter))
    assert agreement() > before


def flat_gradient_product(first: Tensor, second: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """<g_i, g_j>, with its graph."""
    one, other = (torch.autograd.grad(loss, parameters, create_graph=True) for loss in (first, second))
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


def test_alpha_is_the_learning_rate_by_default() -> None:
    world = World()
    assert torch.equal(world.gradient(alpha=None, lr=0.4), world.gradient(alpha=0.4, lr=9.0))
    assert not torch.equal(world.gradient(alpha=None, lr=0.4), world.gradient(alpha=None, lr=0.2))


# --- layers


@pytest.mark.parametrize("mode", MODES)
def test_running_statistics_are_those_of_the_current_batch(mode: Mode, state_of: Any, changed: Any) -> None:
    world, once = World(small(nn.BatchNorm1d(8))), small(nn.BatchNorm1d(8))
    world.objective(mode=mode)
    once(world.batch.inputs)
    assert changed(state_of(once), state_of(world.model)) == set()
    assert int(world.model.module[2].num_batches_tracked) == 1  # type: ignore[index]


def test_dropout_has_a_mask_for_each_batch() -> None:
    torch.manual_seed(0)
    world = World(small(nn.Dropout(0.5)), same=True)
    other_alone = world.objective(alpha=0.0, mode="maml")
    torch.manual_seed(0)
    both = world.objective(alpha=0.0)
    assert not torch.isclose(both, 2 * other_alone)


@pytest.mark.parametrize("mode", MODES)
def test_frozen_and_unused_parameters_are_left_out(mode: Mode) -> None:
    model = small()
    model.module[0].unused = nn.Linear(2, 2).double()  # type: ignore[index]
    world = World(model)
    torch.testing.assert_close(world.gradient(mode=mode)[6:], World().gradient(mode=mode))
    model.module[1].requires_grad_(False)  # type: ignore[index]
    last = list(model.module[3].parameters())  # type: ignore[index]
    gradient = flat_gradient(world.objective(mode=mode), last)
    assert gradient.any()
    assert not torch.allclose(gradient, World().gradient(mode=mode)[-27:])  # the first layer takes no look-ahead step


class Attention(nn.Module):
    """Self-attention with a token per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.fc = nn.Linear(1, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x.flatten(2).transpose(1, 2))[:, None].chunk(3, -1)
        return self.fc(F.scaled_dot_product_attention(query, key, value).mean((1, 2)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", MODES)
def test_fused_attention_is_supported(mode: Mode) -> None:
    assert World(Tapped(Attention())).gradient(mode=mode).any()


# --- training


@pytest.fixture
def make(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Callable[..., Run]:
    """``make(**options)``: a run of three epochs of three steps."""

    def run(recipe: Recipe = Recipe(epochs=3, batch_size=16, lr=0.05, schedule="cosine"), **options: Any) -> Run:  # noqa: B008
        return Run(tiny_data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, **options)

    return run


def test_an_epoch_processes_each_sample_twice(make: Callable[..., Run]) -> None:
    for mode in MODES:
        run = make()
        find("mltp")(run, mode=mode)
        assert [record["forward_passes"]["student"] for record in run.fits[0].history] == [96, 96, 96]


def test_alpha_zero_is_training_on_two_batches(make: Callable[..., Run], state_of: Any) -> None:
    def two_batches(step: Step) -> None:
        (learner,) = step.learners
        step.forward(learner)
        loss, other = step.loss(learner), step.draw("other")
        with frozen_running_statistics(learner.model):
            loss = loss + F.cross_entropy(learner.model(other.inputs), other.targets)
        step.update(learner, loss)

    run = make()
    student = run.student()
    run.fit(Learner(student, None, {"ce": CrossEntropy()}), streams={"other": run.data.train}, update=two_batches)
    torch.testing.assert_close(state_of(find("mltp")(make(), alpha=0.0)), state_of(student))


def test_the_learning_rate_of_a_step_follows_the_schedule(make: Callable[..., Run]) -> None:
    rates: list[float] = []

    def recording(step: Step) -> None:
        rates.append(step.lr[step.learners[0]])
        LookAhead()(step)

    run = make()
    learner = Learner(run.student(), None, {"ce": CrossEntropy()})
    run.fit(learner, streams={"other": run.data.train}, update=recording)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * n / 9)) / 2 for n in range(9)])
    assert rates[-1] == run.fits[0].history[-1]["lr"]


def test_look_ahead_and_its_modes_change_training(make: Callable[..., Run], state_of: Any, changed: Any) -> None:
    states = [
        state_of(find("mltp")(make(), **settings)) for settings in ({"alpha": 0.0}, *({"mode": m} for m in MODES))
    ]
    for number, state in enumerate(states):
        assert all(changed(state, other) for other in states[:number])


def test_several_processes_are_refused(make: Callable[..., Run], refused: Any) -> None:
    with refused("MLTP", "2 processes", "use one process"):
        find("mltp")(make(processes=Processes(0, 2)))
