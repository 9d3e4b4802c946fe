"""The delayed elastic-net attack: distances of a plane, sparsity, its delay, its limits, and a plain loop."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import distances, labels_of, near_grey, plane
from tutelage.attacks import DEN, Misclassified, Targeted, distance
from tutelage.attacks.algorithms import den


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return plane(scale=0.5)


IMAGES = near_grey(6, width=0.3)


def test_without_l1_it_reaches_the_l2_distance_of_a_plane(model: nn.Module) -> None:
    labels = labels_of(model, IMAGES)
    adversarial = DEN(l1=0, l2=0.2, extra=400)(model, IMAGES, labels)
    assert (labels_of(model, adversarial) != labels).all()
    ratio = distance(IMAGES, adversarial, "l2") / distances(model, IMAGES)["l2"]
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() < 1.05


def test_without_l2_it_changes_few_values_and_nears_the_l1_distance(model: nn.Module) -> None:
    """The nearest point in L1 changes one value."""
    labels = labels_of(model, IMAGES)
    adversarial = DEN(l1=0.5, l2=0, norm="l1", extra=500)(model, IMAGES, labels)
    changed = (adversarial != IMAGES).flatten(1).sum(1)
    assert changed.max() <= 4
    ratio = distance(IMAGES, adversarial, "l1") / distances(model, IMAGES)["l1"]
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() < 1.1


def test_without_an_elastic_net_the_distance_never_decreases(model: nn.Module) -> None:
    """The best point is the first adversarial one, whatever the number of further iterations."""
    labels = labels_of(model, IMAGES)
    first, later = (DEN(l1=0, l2=0, extra=extra)(model, IMAGES, labels) for extra in (1, 40))
    assert torch.equal(first, later)
    nearer = DEN(l1=0, l2=0.2, extra=200)(model, IMAGES, labels)
    assert (distance(IMAGES, nearer, "l2") < distance(IMAGES, first, "l2")).all()


def by_loop(model: nn.Module, image: Tensor, label: int, attack: DEN) -> Tensor:
    """The attack on one image, value by value, from the equations alone."""
    x = image.flatten().tolist()
    current, v, s = list(x), [0.0] * len(x), [0.0] * len(x)
    best, nearest, age = list(x), math.inf, 0
    for step in range(1, attack.steps + 2):
        variable = torch.tensor(current, dtype=torch.float64).view(1, *image.shape).requires_grad_()
        p = model(variable).softmax(1)[0]
        success = int(p.argmax()) != label
        gap = (p[label] - max(p[c] for c in range(len(p)) if c != label)).clamp(min=0)
        (gradient,) = torch.autograd.grad(gap, variable, materialize_grads=True)
        d = [a - b for a, b in zip(current, x, strict=True)]
        length = math.sqrt(sum(value**2 for value in d))
        if success and length < nearest:
            best, nearest = list(current), length
        started = success or age > 0
        pulled = success if attack.delay == "while_successful" else started
        if age >= attack.extra:
            break
        for i, g in enumerate(gradient.flatten().tolist()):
            total = g + (attack.l2 * d[i] + attack.l1 * ((d[i] > 0) - (d[i] < 0)) if pulled else 0)
            v[i] = 0.9 * v[i] + 0.1 * total
            s[i] = 0.999 * s[i] + 0.001 * total**2
            moved = min(1.0, max(0.0, current[i] - attack.step_size * v[i] / (math.sqrt(s[i]) + 1e-8)))
            if started and (moved - x[i]) * d[i] <= 0:
                moved = x[i]
            current[i] = moved
        age += started
        assert step <= attack.steps + 1
    return torch.tensor(best, dtype=torch.float64).view(image.shape)


@pytest.mark.parametrize("delay", ["while_successful", "until_first_success"])
def test_it_equals_a_loop_over_values(delay: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        model[1].weight.data.mul_(3)
    images = near_grey(3, width=0.4)
    labels = labels_of(model, images)
    attack = DEN(step_size=0.02, l1=0.02, l2=0.05, extra=25, steps=60, delay=delay)  # type: ignore[arg-type]
    adversarial = attack(model, images, labels)
    assert (adversarial != images).any()
    for image, label, result in zip(images, labels.tolist(), adversarial, strict=True):
        torch.testing.assert_close(result, by_loop(model, image, label, attack), rtol=0, atol=1e-9)


class Recorded(nn.Module):
    """Never misclassifies, has a constant gradient, and records the first value of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.values.append(float(images.detach().flatten()[0]))
        value = 1e-3 * images.flatten(1)[:, :1] + 1
        return torch.cat([value, -value], 1)


def test_steps_grow_twice_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert den._FASTER == ((2000, 5.0), (3500, 25.0))
    monkeypatch.setattr(den, "_FASTER", ((200, 5.0), (350, 25.0)))
    model, image = Recorded(), torch.full((1, 1, 1, 1), 0.9, dtype=torch.float64)
    attack = DEN(step_size=1e-7, steps=360, objective="logits")
    assert torch.equal(attack(model, image, torch.zeros(1).long()), image)  # nothing found
    assert len(model.values) == 361
    steps = [before - after for before, after in pairwise(model.values)]
    assert steps[200] / steps[199] == pytest.approx(5, rel=1e-2)
    assert steps[350] / steps[349] == pytest.approx(5, rel=1e-2)


def test_targets_are_reached_with_their_probability() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
        model[1].weight.data.mul_(6)
    images = near_grey(5, width=0.2)
    targets = (labels_of(model, images) + 1) % 3
    for probability in (0.0, 0.9):
        attack = DEN(criterion=Targeted(probability=probability), step_size=5e-3, extra=60)
        adversarial = attack(model, images, targets)
        reached = model(adversarial).softmax(1).gather(1, targets[:, None])
        assert torch.equal(labels_of(model, adversarial), targets)
        assert (reached > probability).all()


def test_the_label_leaves_the_first_n() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6)).double()
        model[1].weight.data.mul_(4)
    images = near_grey(5, width=0.2)
    labels = labels_of(model, images)
    lengths = []
    for top in (1, 3):
        adversarial = DEN(criterion=Misclassified(top=top), step_size=5e-3, extra=60)(model, images, labels)
        rank = (model(adversarial) > model(adversarial).gather(1, labels[:, None])).sum(1)
        assert (rank >= top).all()
        lengths.append(distance(images, adversarial, "l2"))
    assert (lengths[1] > lengths[0]).all()


def test_a_saturated_softmax_has_no_gradient_and_its_logits_have() -> None:
    model = plane(scale=1e5).float()
    images = near_grey(4).float()
    labels = labels_of(model, images)
    assert DEN().blind(model, images, labels).all()
    assert torch.equal(DEN(steps=50)(model, images, labels), images)
    by_logits = DEN(objective="logits", step_size=5e-3, steps=50, extra=5)
    assert not by_logits.blind(model, images, labels).any()
    assert (labels_of(model, by_logits(model, images, labels)) != labels).all()
