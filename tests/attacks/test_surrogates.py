"""Surrogate gradients that layers declare (BPDA), and attacks on random networks (EOT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import distances, draws, labels_of, near_grey, plane
from tutelage.attacks import (
    DEN,
    FGSM,
    PGD,
    AdversarialSamples,
    Attack,
    Misclassified,
    SurrogateGradient,
    Worst,
    declared_surrogates,
    find_attack,
    input_gradient,
    without_gradient,
)
from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

Refused = Callable[..., AbstractContextManager[None]]


class Rounding(nn.Module):
    """Rounds to 32 levels; declares the identity and a gradient that points the other way."""

    @property
    def surrogates(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        return {"identity": lambda images: images, "reversed": lambda images: -images}

    def forward(self, images: Tensor) -> Tensor:
        return (images * 31).round() / 31


def defended() -> nn.Module:
    return nn.Sequential(Rounding(), plane())


def test_attacks_use_the_first_declared_surrogate_unless_another_or_none_is_named() -> None:
    model, images = defended(), near_grey(5)
    labels = labels_of(model, images)
    _, expected = input_gradient(model[1], Rounding()(images), labels)  # type: ignore[index]
    for bpda, factor in {"declared": 1, "identity": 1, "reversed": -1, "none": 0}.items():
        logits, gradient = input_gradient(model, images, labels, bpda=bpda)
        torch.testing.assert_close(gradient, factor * expected)
        assert torch.equal(logits, model(images))
        assert without_gradient(model, images, labels, bpda=bpda).all() == (factor == 0)


def test_the_context_changes_no_output_and_leaves_no_hook() -> None:
    model, images = defended(), near_grey(3)
    expected = model(images)
    with declared_surrogates(model) as replaced:
        assert replaced
        assert torch.equal(model(images.clone().requires_grad_()), expected)
    assert not model[0]._forward_hooks  # type: ignore[index]
    with declared_surrogates(plane()) as replaced:
        assert not replaced


def test_an_unknown_surrogate_is_refused_where_some_are_declared(refused: Refused) -> None:
    images = near_grey(2)
    with refused("layer '0'", "'blur'", "declared, none, identity, reversed"):
        PGD(radius=0.1, bpda="blur")(defended(), images, labels_of(defended(), images))
    PGD(radius=0.1, bpda="blur")(plane(), images, labels_of(plane(), images))  # nothing to replace


@pytest.mark.parametrize(
    "text",
    ["pgd:0.05:steps=5", "fgsm:0.05", "den:extra=1:step_size=0.01", "pgd:0.05+fgsm:0.05", "foolbox/LinfPGD:0.05"],
)
def test_every_gradient_attack_gets_past_a_declared_layer(text: str) -> None:
    """Without the surrogate it changes no prediction."""
    if "foolbox" in text:
        pytest.importorskip("foolbox")
    model, images = defended().float(), near_grey(40, width=0.01).float()
    labels = labels_of(model, images)

    def share_broken(attack: Attack) -> float:
        return float((labels_of(model, attack(model, images, labels, draws())) != labels).double().mean())

    attack = find_attack(text)
    assert not attack.blind(model, images, labels).any()
    parts = attack.attacks if isinstance(attack, Worst) else (attack,)
    plain = [part.replace(bpda="none") for part in parts]
    masked = Worst(plain) if len(plain) > 1 else plain[0]
    assert find_attack(str(masked)) == masked
    assert share_broken(attack) == 1
    if "foolbox" not in text:  # foolbox refuses a network without a gradient
        assert masked.blind(model, images, labels).all()
        if "pgd" not in text:  # PGD starts at a random point
            assert share_broken(masked) == 0


def test_adversarial_training_gets_past_a_declared_layer() -> None:
    model, images = Tapped(defended().float()), near_grey(6).float()
    labels = labels_of(model, images)
    batch = Batch(images, labels, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    view = AdversarialSamples(model, radius=0.05, step_size=0.05, steps=1)
    torch.manual_seed(0)
    attacked = view(batch, Outputs(None), None).inputs
    _, gradient = input_gradient(model, images, labels)
    start = attacked - 0.05 * gradient.sign()  # where no clip was active, the random start
    moved = (attacked - images).abs() < 0.05 - 1e-6
    assert ((attacked - images).sign() == gradient.sign()).float().mean() > 0.8
    assert (start[moved] - images[moved]).abs().max() <= 0.05 + 1e-6


def test_a_wrapped_layer_uses_the_replacement_of_the_wrapper() -> None:
    images = near_grey(2)
    wrapped = nn.Sequential(SurrogateGradient(Rounding(), lambda x: 3 * x), plane())
    _, gradient = input_gradient(wrapped, images, torch.zeros(2).long())
    _, expected = input_gradient(plane(), Rounding()(images), torch.zeros(2).long())
    torch.testing.assert_close(gradient, 3 * expected)


# --- random networks


class Shifted(nn.Module):
    """A plane whose logits get a random offset at each pass."""

    is_random = True

    def __init__(self, inside: nn.Module, scale: float) -> None:
        super().__init__()
        self.inside, self.scale = inside, scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inside(images)
        return logits + self.scale * torch.randn_like(logits)


def test_averaged_pgd_does_not_stop_at_an_error_of_one_draw() -> None:
    """One draw of a large offset errs at once, so that plain PGD leaves the boundary of the mean far away."""
    inside, images = plane(scale=0.3), near_grey(60)
    model, labels = Shifted(inside, 0.3), labels_of(inside, images)
    radius = 1.2 * float(distances(inside, images)["linf"].max())
    torch.manual_seed(0)
    broken = {
        count: float(
            (labels_of(inside, PGD(radius=radius, steps=6, draws=count)(model, images, labels, draws())) != labels)
            .double()
            .mean()
        )
        for count in (1, 40)
    }
    assert broken[40] > 0.9
    assert broken[1] < 0.5


def test_the_result_of_averaged_pgd_has_the_largest_margin_it_visited() -> None:
    """On a network without noise it walks to the corner of the ball, as far as the criterion allows."""
    model, images = plane(), near_grey(8)
    labels = labels_of(model, images)
    averaged = PGD(radius=0.05, steps=10, draws=2)(model, images, labels, draws())
    farthest = PGD(radius=0.05, steps=10, criterion=Misclassified(confidence=1e6))(model, images, labels, draws())
    torch.testing.assert_close(averaged, farthest)
    torch.testing.assert_close((averaged - images).abs(), torch.full_like(images, 0.05))


def test_how_many_draws_an_attack_averages() -> None:
    assert PGD(radius=0.1).gradient_draws == 1
    assert DEN(draws=7).gradient_draws == 7
    assert find_attack("square:0.1").gradient_draws is None
    assert Worst([PGD(radius=0.1, draws=5), FGSM(radius=0.1, draws=3)]).gradient_draws == 3
    assert find_attack("pgd:0.1:draws=4+square:0.1").gradient_draws == 4
