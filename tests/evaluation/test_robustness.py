"""Accuracy under attack: closed form of a linear network, radii, gradient masking and AUAC."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.attacks import margin
from tutelage.data import Data, Split
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation import accuracy, auac, pgd_accuracies, predict
from tutelage.models.tapped import Tapped

Refused = Callable[..., AbstractContextManager[None]]


def part(samples: int = 120, seed: int = 0) -> Split:
    """Grey 4x4 images, far from black and white, of two linearly separable classes; a fifth is mislabelled."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(90, 166, (samples, 4, 4, 1), generator=generator, dtype=torch.uint8)
    labels = (images.float().flatten(1).sub(127.5) @ weights()[0] < 0).long()
    flipped = torch.rand(samples, generator=generator) < 0.2
    return Split.of(images, labels ^ flipped.long())


def weights() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    row = torch.randn(16, generator=generator)
    return torch.stack([row, -row])


def plane() -> nn.Module:
    layer = nn.Linear(16, 2)
    layer.weight.data = weights()
    layer.bias.data = -weights().sum(1) / 2
    return nn.Sequential(nn.Flatten(), layer)


RADII = (0.005, 0.02, 0.08, 0.3)


def test_accuracy_of_a_linear_network_equals_the_closed_form() -> None:
    """A correct prediction survives radius r if its margin exceeds r times the sum of |w_0 - w_1|."""
    split, model = part(), plane()
    assert isinstance(split.inputs, Tensor)
    pixels = split.inputs.flatten(1).float() / 255
    apart = weights()[0] - weights()[1]
    margin = (pixels - 0.5) @ apart * torch.where(split.labels == 0, 1.0, -1.0)
    result = pgd_accuracies(model, split, RADII)
    assert result.clean == pytest.approx(float((margin > 0).double().mean()))
    assert list(result.accuracies) == list(RADII)
    for radius, share in result.accuracies.items():
        assert share == pytest.approx(float((margin > radius * apart.abs().sum()).double().mean()))
    assert len({result.clean, *result.accuracies.values()}) > 3
    assert result.zero_gradient_share == 0


def test_radius_0_is_the_clean_accuracy(tiny_data: Data, trained_model: Callable[..., Tapped]) -> None:
    model = trained_model()
    result = pgd_accuracies(model, tiny_data.test, [0.0])
    assert result.accuracies == {0.0: result.clean}
    assert result.clean == float(accuracy(predict(model, tiny_data.test, device="cpu"), tiny_data.test.labels))


def test_accuracy_never_rises_with_the_radius(tiny_data: Data, trained_model: Callable[..., Tapped]) -> None:
    """A weak attack of one step may miss at one radius an error that it finds at a smaller one."""
    model = trained_model()
    result = pgd_accuracies(model, tiny_data.train, [0.3, 0.001, 0.01, 0.01, 0.1], steps=1)
    assert list(result.accuracies) == [0.001, 0.01, 0.1, 0.3]
    shares = [result.clean, *result.accuracies.values()]
    assert shares == sorted(shares, reverse=True)


class LocallyLinear(nn.Module):
    """The linear network within 0.1 of middle grey; class 0 for all other images."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = plane()

    def forward(self, images: Tensor) -> Tensor:
        near_grey = ((images - 0.5).abs().flatten(1).amax(1) < 0.1)[:, None]
        return torch.where(near_grey, self.inside(images), torch.tensor([1.0, 0.0]))


def test_samples_broken_at_a_small_radius_stay_broken_at_larger_ones() -> None:
    """A large radius starts where this network is constant and correct; a small one finds the boundary."""
    split = part()
    assert isinstance(split.inputs, Tensor)
    # Within 0.05 of middle grey.
    near_split = replace(split, inputs=(127.5 + (split.inputs.float() - 127.5) / 4).to(torch.uint8))
    first = near_split.subset((predict(plane(), near_split, device="cpu").argmax(1) == 0).nonzero().squeeze(1))
    zeros = replace(first, labels=torch.zeros_like(first.labels))
    large_only = pgd_accuracies(LocallyLinear(), zeros, [1.0]).accuracies[1.0]
    both_radii = pgd_accuracies(LocallyLinear(), zeros, [0.03, 1.0]).accuracies
    assert large_only == 1
    assert both_radii[1.0] == both_radii[0.03] < 1


def test_accuracies_do_not_depend_on_the_batch_size(tiny_data: Data, trained_model: Callable[..., Tapped]) -> None:
    model = trained_model().double()
    model.forward = lambda images, forward=model.forward: forward(images.double())  # type: ignore[method-assign,misc]
    result = [pgd_accuracies(model, tiny_data.train, RADII, steps=3, restarts=2, batch_size=n) for n in (7, 48)]
    assert result[0] == result[1]
    assert result[0] == pgd_accuracies(model, tiny_data.train, RADII, steps=3, restarts=2)


def test_network_is_unchanged(tiny_data: Data, tiny_model: Callable[..., Tapped], state_of: Any, changed: Any) -> None:
    model = tiny_model(dropout=0.5).train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    before, modes = state_of(model), [module.training for module in model.modules()]
    randomness = torch.get_rng_state()
    with torch.inference_mode():
        pgd_accuracies(model, tiny_data.test, [0.01, 0.1], steps=2)
    assert changed(before, state_of(model)) == set()
    assert modes == [module.training for module in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(randomness, torch.get_rng_state())


def test_unlabelled_samples_are_ignored(refused: Refused) -> None:
    split, model = part(), plane()
    labels = split.labels.clone()
    labels[50:] = -1
    partly_labelled = pgd_accuracies(model, replace(split, labels=labels), RADII)
    first = pgd_accuracies(model, split.subset(torch.arange(50)), RADII)
    assert partly_labelled == first
    with refused("none of the 120 samples has a label"):
        pgd_accuracies(model, replace(split, labels=torch.full((120,), -1)), RADII)


def test_accuracy_is_zero_if_no_prediction_is_correct() -> None:
    split = part()
    mislabelled = replace(split, labels=1 - predict(plane(), split, device="cpu").argmax(1))
    result = pgd_accuracies(plane(), mislabelled, RADII)
    assert (result.clean, set(result.accuracies.values())) == (0, {0})


class Rounded(nn.Module):
    """The linear network on rounded inputs: gradients are 0 except for the first ``share`` of the images."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.inside, self.share = plane(), share

    def forward(self, images: Tensor) -> Tensor:
        smooth = math.ceil(len(images) * self.share)
        rounded_images = (images * 255).round() / 255
        logits: Tensor = self.inside(torch.cat([images[:smooth], rounded_images[smooth:]]))
        return logits


def test_warning_if_gradients_are_masked() -> None:
    with pytest.warns(TutelageWarning, match=r"100% of the 120 attacked samples .* overestimated"):
        result = pgd_accuracies(Rounded(0.0), part(), [0.02], steps=2)
    assert result.zero_gradient_share == 1
    assert result.accuracies[0.02] > pgd_accuracies(plane(), part(), [0.02]).accuracies[0.02]
    with pytest.warns(TutelageWarning, match="10% of the 120"):
        assert pgd_accuracies(Rounded(0.9), part(), [0.02], steps=2).zero_gradient_share == pytest.approx(0.1)


def test_few_zero_gradients_are_reported_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = pgd_accuracies(Rounded(0.95), part(), [0.02], steps=2)
    assert result.zero_gradient_share == pytest.approx(0.05)


def test_negative_radius_is_refused() -> None:
    with pytest.raises(TutelageError, match="radius: input should be greater than or equal to 0"):
        pgd_accuracies(plane(), part(), [-0.1])


# --- the area under the curve


def test_auac_of_the_numbers_of_the_authors() -> None:
    result = dict(zip(range(6), (96, 64.95, 34.52, 16.73, 7.81, 3.73), strict=True))
    assert auac(result) == pytest.approx(34.775)
    assert auac(dict(reversed(result.items()))) == auac(result)


def test_auac_of_simple_curves() -> None:
    assert auac({0: 0.4, 0.1: 0.4, 1: 0.4}) == pytest.approx(0.4)
    step = {radius / 1000: float(radius < 250) for radius in range(1001)}
    assert auac(step) == pytest.approx(0.25, abs=1e-3)


def test_auac_of_an_attack() -> None:
    result = pgd_accuracies(plane(), part(), RADII)
    assert result.auac == auac({0.0: result.clean, **result.accuracies})
    assert result.accuracies[0.3] < result.auac < result.clean


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ({0.1: 0.5, 0.2: 0.4}, "radius 0"),
        ({0.0: 0.5}, "radius 0 and at a positive radius"),
        ({}, "radius 0"),
        ({-0.1: 0.9, 0.0: 0.8}, "radius 0"),
        ({0.0: 0.5, 0.1: 0.6}, "must not increase"),
        ({0.0: 0.5, 0.1: float("nan")}, "must not increase"),
    ],
)
def test_invalid_curves_are_refused(curve: dict[float, float], message: str, refused: Refused) -> None:
    with refused(message):
        auac(curve)


def test_margin_loss_is_not_hidden_by_a_saturated_softmax(
    tiny_data: Data, trained_model: Callable[..., Tapped]
) -> None:
    """A saturated softmax hides its gradient from the cross-entropy, not from the margin."""
    model = trained_model()

    def large_logits(images: Tensor) -> Tensor:
        return 1e4 * model(images)

    saturated = nn.Module()
    saturated.forward = large_logits  # type: ignore[method-assign]
    with pytest.warns(TutelageWarning, match="exactly 0"):
        by_ce = pgd_accuracies(saturated, tiny_data.train, [0.1])
    by_margin = pgd_accuracies(saturated, tiny_data.train, [0.1], loss=margin)
    assert by_margin.zero_gradient_share == 0
    assert by_margin.accuracies[0.1] < by_ce.accuracies[0.1]
