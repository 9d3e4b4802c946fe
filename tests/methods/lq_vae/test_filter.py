"""The filter as a front, its surrogate gradients, the refusal of its own gradient, and the attack on its bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.attacks import PGD, Square, declared_surrogates, distance, input_gradient, margin
from tutelage.data import Data
from tutelage.evaluation import evaluate_attacks
from tutelage.methods.lq_vae.adaptive import BitAttack, bit_distance
from tutelage.methods.lq_vae.band import hard_bits, soft_bits
from tutelage.methods.lq_vae.fronts.lq_filter import build, filter_of
from tutelage.models.surgery.front import apply
from tutelage.models.tapped import Tapped

Net = Callable[..., Tapped]
SETTINGS: dict[str, Any] = {"kind": "lq_filter", "mean": [0.4], "std": [0.2], "latent": 5, "width": 0.1}


@pytest.fixture
def filtered(tiny_model: Net) -> Tapped:
    """A classifier with an untrained filter, whose bits depend on the image."""
    model = tiny_model(3).with_normalisation([0.4], [0.2])
    torch.manual_seed(1)
    apply(model.module, torch.rand(2, 1, 8, 8), **SETTINGS)
    encoder = filter_of(model).encoder
    with torch.no_grad():  # means with a standard deviation of the width of the band, so that both kinds of bits occur
        mean = encoder(2 * images(40) - 1)
        factor = 0.15 / mean.std(0)
        encoder.output.weight.mul_(factor[:, None])
        encoder.output.bias.sub_(mean.mean(0)).mul_(factor)
    model = model.rewrapped().eval()
    with torch.no_grad():  # all classes occur
        logits, fc = model(images(40)), model.module.fc
        factor = 1 / logits.std(0)
        fc.weight.mul_(factor[:, None])
        fc.bias.sub_(logits.mean(0)).mul_(factor)
    return model


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_filter_decodes_the_bits_of_the_mean(filtered: Tapped) -> None:
    """It takes pixels in [-1, 1], uses no noise, and gives the classifier images in its normalisation."""
    module = filter_of(filtered)
    mean = module.encoder(2 * images() - 1)[:, :5]
    bits = torch.where(mean.abs() < 0.1, 1.0, -1.0)
    assert 0.1 < (bits > 0).float().mean() < 0.9
    decoded = (module.decoder(bits) - 0.4) / 0.2
    torch.testing.assert_close(module((images() - 0.4) / 0.2), decoded, rtol=0, atol=1e-5)
    assert torch.equal(filtered(images()), filtered(images()))


def test_the_classifier_has_its_own_roles_and_keys(filtered: Tapped, tiny_model: Net) -> None:
    """The filter's convolutions are no stages of the network."""
    plain = tiny_model(3).trace(images())
    keys = [key for key in filtered.module.state_dict() if not key.startswith("front_lq_filter.")]
    assert keys == list(plain.module.state_dict())
    assert dict(filtered.trace(images()).taps) == dict(plain.taps)


def test_its_gradient_is_zero_and_the_evaluation_refuses_it(filtered: Tapped, tiny_data: Data) -> None:
    attack = PGD(radius=0.1, loss="margin", bpda="none")
    with torch.enable_grad():
        inputs = images().requires_grad_()
        value = filtered(inputs).square().sum()
        (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    assert gradient.abs().max() == 0
    assert attack.blind(filtered, images(), torch.zeros(6, dtype=torch.long)).all()
    report = evaluate_attacks(filtered, tiny_data.test, {"pgd": attack, "square": Square(radius=0.1, queries=5)})
    assert "100% of the" in report.results["pgd"].refusal
    assert report.results["pgd"].accuracy is None
    assert not report.results["square"].refusal
    assert not attack.replace(bpda="declared").blind(filtered, images(), torch.zeros(6, dtype=torch.long)).any()


@pytest.mark.parametrize("name", ["soft100", "soft20", "soft5", "straight", "identity"])
def test_a_surrogate_changes_the_gradient_alone(name: str, filtered: Tapped) -> None:
    labels = torch.zeros(6, dtype=torch.long)
    logits, gradient = input_gradient(filtered, images(), labels, margin, bpda=name)
    assert torch.equal(logits, filtered(images()))
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    default, other = (input_gradient(filtered, images(), labels, margin, bpda=b)[1] for b in ("declared", "soft20"))
    assert torch.equal(gradient, default) == (name == "soft100")
    assert torch.equal(gradient, other) == (name == "soft20")


def gradient_of(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(function(inputs).square().sum(), inputs)[0]


@pytest.mark.parametrize(("name", "slope"), [("soft100", 100.0), ("soft20", 20.0), ("soft5", 5.0), ("straight", None)])
def test_the_surrogate_gradient_is_the_chain_rule_at_the_hard_bits(
    name: str, slope: float | None, filtered: Tapped
) -> None:
    """Decoder' (at the hard bits) x bit' (soft) x encoder', by hand."""
    module = copy.deepcopy(filter_of(filtered)).double()
    inputs = (images().double() - 0.4) / 0.2
    leaf = inputs.clone().requires_grad_()
    means = module.code(leaf)
    bits = hard_bits(means).requires_grad_()
    decoded = (module.decoder(bits) - module.mean) / module.std
    (by_bits,) = torch.autograd.grad(decoded.square().sum(), bits)
    u = 0.0 if slope is None else slope * (0.01 - means.detach() ** 2)
    derivative = 1.0 if slope is None else -2 * slope * means.detach() / (1 + abs(u)) ** 2
    (expected,) = torch.autograd.grad(means, leaf, by_bits * derivative)
    torch.testing.assert_close(gradient_of(module.surrogates[name], inputs), expected)
    assert expected.abs().max() > 0


def test_the_identity_replaces_the_whole_filter(filtered: Tapped) -> None:
    """The gradient is the classifier's own, at the filtered image."""
    module = filter_of(filtered)
    classifier = copy.deepcopy(filtered)
    classifier.module.front_lq_filter = nn.Identity()
    at_filtered = module((images() - 0.4) / 0.2).detach() * 0.2 + 0.4
    expected = gradient_of(classifier, at_filtered)
    with declared_surrogates(filtered, "identity"):
        gradient = gradient_of(filtered, images())
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_unknown_surrogates_and_missing_filters_raise(filtered: Tapped, tiny_model: Net, refused: Any) -> None:
    labels = torch.zeros(6, dtype=torch.long)
    with refused("declares no surrogate gradient 'soft'", "soft100", "straight"):
        PGD(radius=0.1, bpda="soft")(filtered, images(), labels)
    with refused("has no filter of LQ-VAE"):
        BitAttack(radius=0.1, pool=images(20))(tiny_model(), images(), labels)


# --- the attack on the bits


def test_the_distance_of_bits_is_0_exactly_where_all_are_the_targets() -> None:
    means = torch.tensor([[0.02, -0.3, 0.09], [0.02, 0.3, 0.2], [0.12, 0.0, -0.15]])
    target = torch.tensor([[1.0, -1.0, 1.0]]).expand(3, 3)
    expected = torch.tensor([0.04, 0.15, 0.07 + 0.15 + 0.10])
    torch.testing.assert_close(bit_distance(means, target, 0.05), expected)
    assert (bit_distance(means, hard_bits(means), 0.0) == 0).all()
    assert ((soft_bits(means) > 0) == (hard_bits(means) > 0)).all()


def test_the_attack_finds_the_bits_of_another_class_within_its_radius(filtered: Tapped) -> None:
    """With a radius of 1 an image of another class is in reach, so every image must fall."""
    attack = BitAttack(radius=1.0, pool=images(40)[6:], steps=200, room=0.01)
    clean = filtered(images()).argmax(1)
    assert len(set(filtered(images(40)).argmax(1).tolist())) > 1
    adversarial = attack(filtered, images(), clean, torch.Generator().manual_seed(0))
    assert (filtered(adversarial).argmax(1) != clean).double().mean() >= 0.5
    small = BitAttack(radius=0.03, pool=images(40)[6:], steps=5)
    near = small(filtered, images(), clean, torch.Generator().manual_seed(0))
    assert distance(images(), near, "linf").max() <= 0.03 + 1e-6
    assert near.min() >= 0
    assert near.max() <= 1
    alone = small(filtered, images()[:1], clean[:1], torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone, near[:1], rtol=0, atol=1e-5)  # the batch does not matter


def test_images_that_are_misclassified_already_do_not_change(filtered: Tapped) -> None:
    wrong = (filtered(images()).argmax(1) + 1) % 4
    assert torch.equal(BitAttack(radius=0.1, pool=images(20), steps=3)(filtered, images(), wrong), images())


# --- settings


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"mean": [0.4, 0.4]}, ["mean", "1 finite numbers"]),
        ({"std": [float("inf")]}, ["std", "finite"]),
        ({"mean": 0.4}, ["mean", "0.4"]),
        ({"latent": 0}, ["at least 1"]),
        ({"width": 0.001}, ["take a larger one"]),
    ],
)
def test_invalid_settings_raise(settings: dict[str, Any], pieces: list[str], refused: Any) -> None:
    with refused(*pieces):
        build(images(), **{"mean": [0.4], "std": [0.2], "latent": 5, "width": 0.1, **settings})


def test_inputs_other_than_images_raise(refused: Any) -> None:
    with refused("is for images", "(6,)"):
        build(torch.rand(2, 6), mean=[0.4], std=[0.2], latent=5, width=0.1)
