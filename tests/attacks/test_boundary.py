"""The attack that moves samples to the decision boundary of a teacher."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import Tensor, nn

from tests.attacks.boundary import EPS, ETA, attack_by_loops, two_planes
from tutelage.attacks import boundary_attack
from tutelage.attacks.boundary import Norm


def at_gap(gap: float, length: float) -> Tensor:
    """(1, 3), an input whose first logit is ``gap`` above the other."""
    return torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64) * gap / length


BASE, TARGET = torch.tensor([0]), torch.tensor([1])


def mlp(classes: int = 4, features: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).double()


@pytest.mark.parametrize(("steps", "gap"), [(1, 0.79994), (2, 0.319916)])
def test_first_norm_step_on_linear_teacher(steps: int, gap: float) -> None:
    """(1 - eta ||w||)^i (L_0 + eps) - eps, with L_0 = 2, ||w|| = 2."""
    network = two_planes(2.0)
    attack_points = boundary_attack(network, at_gap(2.0, 2.0), BASE, TARGET, steps=steps)
    frequencies = float(network(attack_points)[0, 0])
    assert frequencies == pytest.approx(gap, rel=1e-5)
    assert frequencies == pytest.approx(0.4**steps * (2 + EPS) - EPS, rel=1e-9)


@pytest.mark.parametrize("length", [0.1, 2.0, 50.0])
def test_squared_norm_step_on_linear_teacher_is_scale_invariant(length: float) -> None:
    """(1 - eta)^i (L_0 + eps) - eps: ten steps do not cross from L_0 = 2."""
    network = two_planes(length)
    attack_points = boundary_attack(network, at_gap(2.0, length), BASE, TARGET, norm="squared")
    gap = float(network(attack_points)[0, 0])
    assert gap == pytest.approx(0.0563979, rel=1e-6)
    assert gap == pytest.approx(0.7**10 * (2 + EPS) - EPS, rel=1e-9)
    # only along the gradient
    torch.testing.assert_close(attack_points, at_gap(gap, length))


@pytest.mark.parametrize(
    ("norm", "length", "crossing"), [("squared", 2.0, 28), ("squared", 7.0, 28), ("first", 2.0, 11)]
)
def test_sample_stops_after_crossing_the_boundary(norm: Norm, length: float, crossing: int) -> None:
    network = two_planes(length)

    def attack(steps: int) -> Tensor:
        return boundary_attack(network, at_gap(2.0, length), BASE, TARGET, steps=steps, norm=norm)

    assert int(network(attack(crossing - 1)).argmax()) == 0
    assert int(network(attack(crossing)).argmax()) == 1
    assert torch.equal(attack(crossing), attack(crossing + 60))
    assert not torch.equal(attack(crossing - 1), attack(crossing))


def test_network_is_not_run_after_all_samples_crossed() -> None:
    calls: list[int] = []
    plane = two_planes(2.0)

    def network(x: Tensor) -> Tensor:
        calls.append(len(x))
        return plane(x)

    boundary_attack(network, at_gap(2.0, 2.0), BASE, TARGET, steps=500)
    assert len(calls) == 12  # eleven steps, and one pass that detects that all have crossed


def test_a_sample_of_another_class_is_not_moved() -> None:
    network = mlp()
    inputs = torch.randn(40, 5, dtype=torch.float64)
    predictions = network(inputs).argmax(1)
    base, target = predictions.clone(), (predictions + 1) % 4
    base[::2] = (predictions[::2] + 2) % 4  # the network predicts another class for these
    attack_points = boundary_attack(network, inputs, base, target)
    is_unmoved = (attack_points == inputs).all(1)
    assert is_unmoved[::2].all()
    assert not is_unmoved[1::2].any()


@pytest.mark.parametrize("norm", ["first", "squared"])
@pytest.mark.parametrize("steps", [1, 10, 60])
def test_attack_equals_plain_loops_per_sample(norm: Norm, steps: int) -> None:
    network = mlp()
    inputs = torch.randn(24, 5, dtype=torch.float64)
    base = network(inputs).argmax(1)
    target = (base + torch.randint(1, 4, (24,))) % 4
    low, high = torch.linspace(-3, -1, 5).double(), torch.linspace(1, 2, 5).double()
    inputs = inputs.clamp(low, high)
    base = network(inputs).argmax(1)
    target = torch.where(target == base, (base + 1) % 4, target)
    attack_points = boundary_attack(network, inputs, base, target, low=low, high=high, steps=steps, norm=norm)
    expected = attack_by_loops(network, inputs, base, target, low, high, steps, norm)
    torch.testing.assert_close(attack_points, expected, rtol=1e-8, atol=1e-8)
    if steps == 60:
        after = network(attack_points).argmax(1)
        assert int((after != base).sum()) > 0
        assert ((attack_points == low) | (attack_points == high)).any()


def test_images_are_moved_like_flat_inputs() -> None:
    """The gradient norm is over all axes of a sample."""
    network = mlp(features=12)
    inputs = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    base = network(inputs.flatten(1)).argmax(1)
    target = (base + 1) % 4
    attack_points = boundary_attack(lambda x: network(x.flatten(1)), inputs, base, target)
    assert torch.equal(attack_points.flatten(1), boundary_attack(network, inputs.flatten(1), base, target))


@pytest.mark.parametrize("norm", ["first", "squared"])
def test_zero_gradient_moves_nothing(norm: Norm) -> None:
    def network(x: Tensor) -> Tensor:  # flat where the first input is negative
        slope = x[:, :1].clamp(min=0)
        return torch.cat([1 + slope, 0 * slope], 1)

    inputs = torch.tensor([[-1.0, 2.0], [1.0, 2.0]])
    attack_points = boundary_attack(network, inputs, torch.zeros(2).long(), torch.ones(2).long(), norm=norm)
    assert torch.equal(attack_points[0], inputs[0])
    assert torch.isfinite(attack_points).all()
    assert attack_points[1, 0] < 1


def test_inputs_and_network_do_not_change() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    inputs = torch.rand(9, 1, 6, 6).requires_grad_()
    original = inputs.detach().clone()
    base = network(inputs).argmax(1)
    with torch.no_grad():  # as in the dry run
        attack_points = boundary_attack(network, inputs, base, (base + 1) % 3)
    assert not torch.equal(attack_points, original)
    assert not attack_points.requires_grad
    assert attack_points.grad_fn is None
    assert torch.equal(inputs, original)
    assert inputs.grad is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is not None and bool((p.grad == 1).all()) for p in network.parameters())


@pytest.mark.parametrize(("norm", "step_size", "steps"), [("squared", ETA, 10), ("first", 0.05, 10)])
def test_points_of_two_moons_reach_the_boundary(norm: Norm, step_size: float, steps: int) -> None:
    """The gradient norm is 10 to 30 here: steps with norm=first and 0.3 would overshoot the boundary."""
    points, labels = make_moons(400, noise=0.1, random_state=0)
    x, y = torch.tensor(points), torch.tensor(labels).long()
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)).double()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    correct = teacher(x).argmax(1) == y
    assert correct.double().mean() > 0.97
    x, y = x[correct], y[correct]
    attack_points = boundary_attack(teacher, x, y, 1 - y, steps=steps, step_size=step_size, norm=norm)
    with torch.no_grad():
        start, end = ((z[:, 0] - z[:, 1]).abs() for z in (teacher(x), teacher(attack_points)))
    assert (end < start).double().mean() >= 0.9
    assert (end / start).median() < 0.1


def test_clamping_uses_bounds_of_each_channel() -> None:
    low, high = torch.tensor([-2.0, -0.5, -1.75]).view(3, 1, 1), torch.tensor([8.0, 2.0, 0.75]).view(3, 1, 1)
    rows = torch.stack([torch.ones(12), -torch.ones(12)])
    inputs = torch.full((1, 3, 2, 2), 0.5)
    down = boundary_attack(lambda x: x.flatten(1) @ rows.T, inputs, BASE, TARGET, low=low, high=high, step_size=100.0)
    assert torch.equal(down, low.expand(1, 3, 2, 2))
    shifted_points = boundary_attack(
        lambda x: 20 - x.flatten(1) @ rows.T, inputs, BASE, TARGET, low=low, high=high, step_size=0.5, steps=1
    )
    assert torch.equal(shifted_points, inputs)  # which predicts the other class already
    shifted_points = boundary_attack(
        lambda x: x.flatten(1) @ rows.T, -inputs, TARGET, BASE, low=low, high=high, step_size=100.0
    )
    assert torch.equal(shifted_points, high.expand(1, 3, 2, 2))
