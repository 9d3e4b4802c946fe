"""Attacks of foolbox: the same rules as for other attacks, and minimum-norm attacks as oracles of DEN."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import distances, draws, labels_of, near_grey, plane
from tutelage.attacks import DEN, FoolboxAttack, distance, find_attack
from tutelage.data import open_data
from tutelage.models.tapped import Tapped

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:scipy")
Refused = Callable[..., AbstractContextManager[None]]

DDN, CW = "foolbox/DDNAttack:steps=60", "foolbox/L2CarliniWagnerAttack:binary_search_steps=4:steps=60"
EAD = "foolbox/EADAttack:binary_search_steps=4:steps=60:initial_const=0.1"


@pytest.fixture(scope="module", autouse=True)
def _foolbox() -> None:
    pytest.importorskip("eagerpy", reason="foolbox is not installed: pip install 'tutelage[attacks]'")


def test_norms_and_texts() -> None:
    for text, norm in (
        (DDN, "l2"),
        (CW, "l2"),
        (EAD, "l1"),
        ("foolbox/LinfPGD:0.1", "linf"),
        ("foolbox/L1PGD:1", "l1"),
    ):
        attack = find_attack(text)
        assert attack.norm == norm
        assert str(attack) == text
        assert find_attack(str(attack)) == attack


@pytest.mark.parametrize("text", ["LinfPGD:0.1:steps=3", "DDNAttack:steps=9", "BoundaryAttack:steps=9"])
def test_the_network_the_inputs_and_random_generators_do_not_change(text: str) -> None:
    model, images = nn.Sequential(plane(), nn.Dropout(0.5)).train(), near_grey(6, width=0.4)
    labels = labels_of(model[0], images)
    model[0](images).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]
    attack = find_attack("foolbox/" + text)
    first, second = (attack(model, images, labels, draws()) for _ in range(2))
    assert torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1
    assert model.training
    assert all(
        torch.equal(p.grad, old) for p, old in zip(model.parameters(), gradients, strict=True) if p.grad is not None
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    broken = labels_of(model.eval(), first) != labels
    assert torch.equal((first != images).flatten(1).any(1) | broken, (first != images).flatten(1).any(1))


def test_misclassified_images_are_returned_unchanged() -> None:
    model, images = plane(), near_grey(6)
    for text in (DDN, "foolbox/LinfPGD:0.1:steps=3"):
        assert torch.equal(find_attack(text)(model, images, 1 - labels_of(model, images), draws()), images)


def test_its_nearest_points_of_a_plane_are_those_of_the_closed_form() -> None:
    model, images = plane(), near_grey(8, width=0.3)
    labels, exact = labels_of(model, images), distances(model, images)["l2"]
    adversarial = find_attack("foolbox/DDNAttack:steps=100")(model, images, labels, draws())
    assert (labels_of(model, adversarial) != labels).all()
    assert (distance(images, adversarial, "l2") / exact).median() == pytest.approx(1, abs=0.02)


def test_masked_gradients_are_seen_for_attacks_that_use_them() -> None:
    class Rounding(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images * 255).round() / 255

    model, images = nn.Sequential(Rounding(), plane()), near_grey(4)
    labels = labels_of(model, images)
    assert find_attack(DDN).blind(model, images, labels).all()
    assert not find_attack("foolbox/BoundaryAttack").blind(model, images, labels).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foolbox/DDN", "did you mean 'DDNAttack'"),
        ("foolbox/DDNAttack:0.1", "has no radius; leave it out"),
        ("foolbox/LinfPGD", "needs a radius; for example foolbox/LinfPGD:0.03"),
        ("foolbox/DDNAttack:stepz=3", "stepz"),
        ("foolbox/L0BrendelBethgeAttack", "cannot be used"),
    ],
)
def test_invalid_texts_are_refused(text: str, message: str, refused: Refused) -> None:
    with refused(message):
        find_attack(text)


def test_den_against_the_minimum_norm_attacks_of_foolbox() -> None:
    """On an MLP trained on the digits, DEN is nearer than CW in L2, not nearer than DDN, and sparser than all."""
    data = open_data("digits")
    pixels, labels = data.train.inputs, data.train.labels
    assert isinstance(pixels, Tensor)
    inputs = pixels.permute(0, 3, 1, 2) / 255
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), *data.mean_std)
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    images, classes = inputs[:30], labels_of(model, inputs[:30])
    measured = {}
    for attack in (DEN(step_size=0.01, extra=200), *map(find_attack, (DDN, CW, EAD))):
        adversarial = attack(model, images, classes, draws())
        broken = labels_of(model, adversarial) != classes
        name = attack.name if isinstance(attack, FoolboxAttack) else "DEN"
        changed = (adversarial != images).flatten(1).double().mean(1)[broken]
        length = distance(images, adversarial, "l2")[broken]
        measured[name] = (float(broken.double().mean()), float(length.median()), float(changed.mean()))
    den, ddn, cw, ead = (measured[name] for name in ("DEN", "DDNAttack", "L2CarliniWagnerAttack", "EADAttack"))
    assert den[0] == ddn[0] == ead[0] == 1
    assert ddn[1] <= den[1] < min(cw[1], 1.3 * ddn[1])
    assert den[2] < min(ddn[2], cw[2], ead[2])
