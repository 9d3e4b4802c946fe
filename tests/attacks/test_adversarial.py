"""The attack during training: a step by hand, bounds, the network's mode and statistics, unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.attacks import AdversarialSamples
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.data.loader import evaluation_batches
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped

NOTHING = Outputs(None)


@pytest.fixture
def batch(tiny_data: Data) -> Batch:
    return next(evaluation_batches(tiny_data.train, batch_size=16, workers=0))


def test_one_step_by_hand(batch: Batch, trained_model: Callable[..., Tapped]) -> None:
    model = trained_model()
    torch.manual_seed(3)
    adversarial_batch = AdversarialSamples(model, 0.1, 0.03, 1)(batch, NOTHING, None)
    torch.manual_seed(3)
    start = (batch.inputs + torch.empty_like(batch.inputs).uniform_(-0.1, 0.1)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), batch.targets), start)
    expected = (start.detach() + 0.03 * gradient.sign()).clamp(batch.inputs - 0.1, batch.inputs + 0.1).clamp(0, 1)
    torch.testing.assert_close(adversarial_batch.inputs, expected)
    assert adversarial_batch.targets is batch.targets
    assert adversarial_batch.index is batch.index
    assert not adversarial_batch.inputs.requires_grad


def test_one_step_from_the_image_is_the_fast_gradient_sign_method(
    batch: Batch, trained_model: Callable[..., Tapped]
) -> None:
    model = trained_model().eval()
    state = torch.get_rng_state()
    view = AdversarialSamples(model, 0.1, 0.1, 1, random_start=False)
    adversarial_inputs = view(batch, NOTHING, None).inputs
    assert torch.equal(torch.get_rng_state(), state)  # it draws nothing
    inputs = batch.inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), batch.targets), inputs)
    torch.testing.assert_close(adversarial_inputs, (batch.inputs + 0.1 * gradient.sign()).clamp(0, 1))


def test_loss_increases_within_bounds(batch: Batch, trained_model: Callable[..., Tapped]) -> None:
    model = trained_model()
    for clamp in (True, False):
        adversarial_inputs = AdversarialSamples(model, 0.1, 0.025, 7, clamp=clamp)(batch, NOTHING, None).inputs
        assert (adversarial_inputs - batch.inputs).abs().max() <= 0.1 + 1e-6
        assert bool((adversarial_inputs.min() >= 0) & (adversarial_inputs.max() <= 1)) == clamp
        before, after = (F.cross_entropy(model(images), batch.targets) for images in (batch.inputs, adversarial_inputs))
        assert after > 1.2 * before


def test_network_keeps_its_mode_and_gradients(
    batch: Batch, tiny_model: Callable[..., Tapped], state_of: Any, changed: Any
) -> None:
    model = tiny_model().train()
    before, passes = state_of(model), model.passes
    with torch.no_grad():
        AdversarialSamples(model, 0.1, 0.025, 5)(batch, NOTHING, None)
    assert model.passes - passes == 5 * 16
    changed_names = changed(before, state_of(model))
    assert changed_names
    assert all("running" in name or "num_batches" in name for name in changed_names)
    assert int(model.module.bn1.num_batches_tracked) == 5  # type: ignore[arg-type,union-attr]
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    before = state_of(model.eval())
    AdversarialSamples(model, 0.1, 0.025, 5)(batch, NOTHING, None)
    assert changed(before, state_of(model)) == set()


def test_unlabelled_samples_are_not_perturbed(batch: Batch, trained_model: Callable[..., Tapped]) -> None:
    batch.targets[::2] = -1
    adversarial_inputs = AdversarialSamples(trained_model(), 0.1, 0.025, 3)(batch, NOTHING, None).inputs
    assert torch.equal(adversarial_inputs[::2], batch.inputs[::2])
    assert ((adversarial_inputs - batch.inputs)[1::2].flatten(1).abs().amax(1) > 0.05).all()


def test_soft_labels_and_radius_0(batch: Batch, trained_model: Callable[..., Tapped]) -> None:
    model = trained_model()
    soft = Batch(batch.inputs, F.one_hot(batch.targets, 4).float(), batch.index, batch.key)
    results = []
    for variant in (soft, batch):
        torch.manual_seed(0)
        results.append(AdversarialSamples(model, 0.1, 0.05, 3)(variant, NOTHING, None).inputs)
    torch.testing.assert_close(*results)
    assert torch.equal(AdversarialSamples(model, 0.0, 0.05, 2)(batch, NOTHING, None).inputs, batch.inputs)


@pytest.mark.parametrize("settings", [(-0.1, 0.1, 1), (0.1, -0.1, 1), (0.1, 0.1, 0), (float("nan"), 0.1, 1)])
def test_invalid_settings_are_refused(settings: tuple[float, float, int], tiny_model: Callable[..., Tapped]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more and steps 1 or more"):
        AdversarialSamples(tiny_model(), *settings)
