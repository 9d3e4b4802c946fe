"""What holds for every attack: bounds, side effects, reproducibility, closed forms and refusals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import distances, draws, labels_of, near_grey, plane
from tutelage.attacks import (
    PGD,
    Attack,
    Misclassified,
    Square,
    Targeted,
    Worst,
    attack_names,
    distance,
    find_attack,
)
from tutelage.models.tapped import Tapped

Refused = Callable[..., AbstractContextManager[None]]

TEXTS = {
    "pgd": (
        "pgd:0.1:steps=5",
        "pgd:0.1:steps=5:restarts=2:loss=margin",
        "pgd:0.5:norm=l2:steps=5",
        "pgd:1:norm=l1:steps=5",
    ),
    "fgsm": ("fgsm:0.1",),
    "square": ("square:0.1:queries=30",),
    "den": ("den:step_size=0.01:extra=20:steps=60", "den:objective=logits:norm=l1:step_size=0.02:extra=9:steps=40"),
}
ALL = [*(text for texts in TEXTS.values() for text in texts), "pgd:0.1:steps=3+square:0.1:queries=9"]


def test_every_attack_of_the_package_is_tested() -> None:
    assert set(TEXTS) == set(attack_names())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(12, 1, 8, 8, generator=draws(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small random network with four classes, whose boundaries are near the images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4)]
        layers[1].weight.data.mul_(5)  # type: ignore[union-attr,operator]
        return nn.Sequential(*layers).double()


@pytest.mark.parametrize("text", ALL)
def test_results_are_pixels_within_the_radius_and_successes_are_real(
    text: str, model: nn.Module, images: Tensor
) -> None:
    attack, labels = find_attack(text), labels_of(model, images)
    result = attack(model, images, labels, draws())
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 1
    changed = (result != images).flatten(1).any(1)
    assert changed.any()
    if attack.radius is None:  # it returns an adversarial image or the image
        assert torch.equal(labels_of(model, result) != labels, changed)
    else:
        assert distance(images, result, attack.norm).max() <= attack.radius + 1e-9


@pytest.mark.parametrize("text", ALL)
def test_the_generator_determines_the_result_and_batches_do_not(text: str, model: nn.Module, images: Tensor) -> None:
    attack, labels = find_attack(text), labels_of(model, images)
    whole = attack(model, images, labels, draws())
    assert torch.equal(whole, attack(model, images, labels, draws()))
    generator = draws()
    parts = [attack(model, images[part], labels[part], generator) for part in torch.arange(12).split(5)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("text", ["pgd:0.1:steps=2", "square:0.1:queries=5"])
def test_random_attacks_depend_on_the_generator(text: str, model: nn.Module, images: Tensor) -> None:
    attack, labels = find_attack(text), labels_of(model, images)
    assert not torch.equal(attack(model, images, labels, draws(0)), attack(model, images, labels, draws(1)))


@pytest.mark.parametrize("caller", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("text", ALL)
def test_the_network_and_the_inputs_do_not_change(
    text: str,
    caller: Callable[[], AbstractContextManager[object]],
    tiny_model: Callable[..., Tapped],
    state_of: Any,
    changed: Any,
) -> None:
    model = tiny_model(dropout=0.5).train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    before, modes = state_of(model), [module.training for module in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with caller():
        images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
        original, randomness = images.clone(), torch.get_rng_state()
        result = find_attack(text)(model, images, labels, draws())
        find_attack(text).blind(model, images, labels)
        assert torch.equal(images, original)
    assert not result.requires_grad
    assert changed(before, state_of(model)) == set()
    assert modes == [module.training for module in model.modules()]
    assert all(
        torch.equal(p.grad, old) for p, old in zip(model.parameters(), gradients, strict=True) if p.grad is not None
    )
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(randomness, torch.get_rng_state())


@pytest.mark.parametrize("text", ALL)
def test_misclassified_inputs_are_returned_unchanged(text: str, model: nn.Module, images: Tensor) -> None:
    labels = (labels_of(model, images) + 1) % 4
    assert torch.equal(find_attack(text)(model, images, labels, draws()), images)


@pytest.mark.parametrize("text", ALL)
def test_empty_batches(text: str, model: nn.Module, images: Tensor) -> None:
    assert find_attack(text)(model, images[:0], torch.zeros(0).long()).shape == (0, 1, 8, 8)


# --- a linear network, whose distances are |f| / ||w||_q


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_breaks_exactly_the_samples_of_a_plane_within_its_radius(norm: str) -> None:
    model, images = plane(), near_grey(100)
    labels, exact = labels_of(model, images), distances(model, images)[norm]
    radius = float(exact.median())
    attack = PGD(radius=radius, norm=norm, steps=60)  # type: ignore[arg-type]
    broken = labels_of(model, attack(model, images, labels, draws())) != labels
    clear = (exact / radius - 1).abs() > 0.03
    assert 0 < broken.sum() < 100
    assert torch.equal(broken[clear], (exact <= radius)[clear])


def test_square_and_fgsm_break_no_sample_outside_of_the_radius() -> None:
    model, images = plane(), near_grey(60)
    labels, exact = labels_of(model, images), distances(model, images)["linf"]
    radius = float(exact.median())
    one_step = labels_of(model, find_attack(f"fgsm:{radius}")(model, images, labels)) != labels
    assert torch.equal(one_step, exact <= radius)  # a linear network needs one step
    searched = labels_of(model, Square(radius=radius)(model, images, labels, draws())) != labels
    assert not (searched & (exact > radius)).any()
    assert (searched & (exact <= radius)).sum() >= 0.8 * (exact <= radius).sum()


# --- the worst of several


def test_the_worst_of_several_breaks_what_any_of_them_breaks(model: nn.Module, images: Tensor) -> None:
    attacks = [PGD(radius=0.05, steps=1), Square(radius=0.05, queries=20)]
    labels = labels_of(model, images)
    single = [labels_of(model, attack(model, images, labels, draws())) != labels for attack in attacks]
    worst = labels_of(model, Worst(attacks)(model, images, labels, draws())) != labels
    assert not (single[0] & ~worst).any()  # the first draws the same numbers
    assert worst.sum() >= single[0].sum()


def test_the_worst_of_nearest_points_is_the_nearest(model: nn.Module, images: Tensor) -> None:
    attacks = [find_attack("den:step_size=0.05:extra=5"), find_attack("den:step_size=0.01:extra=40")]
    labels = labels_of(model, images)
    lengths = torch.stack([distance(images, a(model, images, labels), "l2") for a in attacks])
    assert not torch.equal(lengths.argmin(0), torch.zeros(12).long())
    torch.testing.assert_close(distance(images, Worst(attacks)(model, images, labels), "l2"), lengths.amin(0))


def test_different_attacks_have_no_worst(refused: Refused) -> None:
    for text in ("pgd:0.1+square:0.2", "pgd:0.1+pgd:0.1:norm=l2", "pgd:0.1+den"):
        with refused("attacks of one norm, radius and criterion"):
            find_attack(text)


# --- refusals


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(2, 1, 4, 4) * 2 + 1, [0, 1], "range from"),
        (torch.rand(2, 1, 4, 4) - 1.5, [0, 1], "put the normalisation into the network"),
        (torch.full((2, 1, 4, 4), float("nan")), [0, 1], "range from nan"),
        (torch.zeros(2, 1, 4, 4).byte(), [0, 1], "divide pixels by 255"),
        (torch.rand(2, 1, 4, 4), [0], "one class per input"),
        (torch.rand(2, 1, 4, 4), [0.0, 1.0], "one class per input"),
        (torch.rand(2, 1, 4, 4), [-1, 1], "without a label"),
        (torch.rand(2, 1, 4, 4), [0, 2], "has 2 classes"),
    ],
)
def test_inputs_that_cannot_be_attacked_are_refused(
    images: Tensor, labels: list[float], message: str, refused: Refused
) -> None:
    with refused(message):
        PGD(radius=0.1)(plane().float(), images, torch.tensor(labels))


def test_criteria_that_the_network_cannot_meet_are_refused(refused: Refused) -> None:
    images = near_grey(2)
    with refused("top must be below the number of classes, 2"):
        PGD(radius=0.1, criterion=Misclassified(top=2))(plane(), images, torch.zeros(2).long())
    with refused("two classes or more"):
        PGD(radius=0.1)(nn.Sequential(nn.Flatten(), nn.Linear(16, 1).double()), images, torch.zeros(2).long())


def test_attacks_are_frozen_values() -> None:
    assert PGD(radius=0.1) == find_attack("pgd:0.1")
    assert PGD(radius=0.1).replace(steps=3) == PGD(radius=0.1, steps=3)
    assert hash(PGD(radius=0.1, criterion=Targeted())) != hash(PGD(radius=0.1))
    with pytest.raises(ValueError, match="frozen"):
        PGD(radius=0.1).steps = 5


def test_a_new_attack_is_a_subclass(model: nn.Module, images: Tensor) -> None:
    class Blackout(Attack):
        def search(self, model: nn.Module, inputs: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
            return torch.zeros_like(inputs)

    assert not Blackout()(model, images, labels_of(model, images)).any()
    assert not Blackout().blind(model, images, labels_of(model, images)).any()
