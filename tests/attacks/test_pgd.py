"""Projected gradient descent: closed forms on linear networks, a plain loop, and side effects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.attacks import PGD, input_gradient, zero_gradients
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.tapped import Tapped


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, *, generator: torch.Generator | None = None, **settings: Any
) -> Tensor:
    return PGD(**settings)(model, images, labels, generator)


def linear(classes: int = 2, features: int = 16, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features, classes)
    layer.weight.data = torch.randn(classes, features, generator=generator)
    layer.bias.data = torch.zeros(classes)
    return nn.Sequential(nn.Flatten(), layer)


def inner(samples: int, seed: int = 1) -> Tensor:
    """(N, 1, 4, 4) in [0.3, 0.7], so that a radius of 0.3 does not leave the pixel range."""
    return 0.3 + 0.4 * torch.rand(samples, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_correct(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        answers: Tensor = model(images).argmax(1)
    return answers


# --- two classes, a linear network: the worst image of the box is the corner x - radius sign(w_y - w_k)


@pytest.mark.parametrize("radius", [0.01, 0.05, 0.2, 0.3])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_linear_network_matches_closed_form(radius: float, steps: int) -> None:
    model, images = linear(), inner(200)
    labels = is_correct(model, images)
    weight = model[1].weight.detach()  # type: ignore[index]
    difference = weight[0] - weight[1]
    gap = (images.flatten(1) @ difference).abs()  # the label's logit minus the other
    holds = gap > radius * difference.abs().sum()
    adversarial_images = pgd(model, images, labels, radius=radius, steps=steps, generator=draws())
    assert torch.equal(is_correct(model, adversarial_images) == labels, holds)

    side = torch.where(labels == 0, 1.0, -1.0)[:, None] * difference.sign()
    corner = images - radius * side.view_as(images)
    torch.testing.assert_close(adversarial_images[holds], corner[holds], atol=1e-6, rtol=0)


def test_corner_is_reached_after_clipping_to_pixels() -> None:
    model = linear(seed=2)
    images = torch.rand(100, 1, 4, 4, generator=draws())
    labels = is_correct(model, images)
    weight = model[1].weight.detach()  # type: ignore[index]
    side = torch.where(labels == 0, 1.0, -1.0)[:, None] * (weight[0] - weight[1]).sign()
    corner = (images - 0.15 * side.view_as(images)).clamp(0, 1)
    holds = is_correct(model, corner) == labels
    adversarial_images = pgd(model, images, labels, radius=0.15, generator=draws())
    assert 0 < holds.sum() < 100
    assert torch.equal(is_correct(model, adversarial_images) == labels, holds)
    torch.testing.assert_close(adversarial_images[holds], corner[holds], atol=1e-6, rtol=0)


def test_equals_plain_loop() -> None:
    """One sample after another, one restart, the gradient by torch's functional Jacobian."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    images = inner(24).double()
    labels = is_correct(model, images)
    radius, steps, step_size = 0.15, 6, 0.05
    starts = (2 * torch.rand(24, 1, 1, 4, 4, generator=draws(3)) - 1).mul(radius).squeeze(1)
    expected = []
    for image, start, label in zip(images, starts, labels.tolist(), strict=True):
        x = image + start
        path = [image]
        for step in range(steps + 1):
            x = torch.minimum(torch.maximum(x, image - radius), image + radius).clamp(0, 1)
            path.append(x)
            if step == steps or int(model(x[None]).argmax()) != label:
                break

            def loss(v: Tensor, label: int = label) -> Tensor:
                return F.cross_entropy(model(v[None]), torch.tensor([label]))

            x = x + step_size * torch.autograd.functional.jacobian(loss, x).sign()  # type: ignore[no-untyped-call]
        logits = [model(v[None])[0].detach() for v in path]
        leads = [float(max(row[k] for k in range(3) if k != label) - row[label]) for row in logits]
        expected.append(path[leads.index(max(leads))])
    adversarial_images = pgd(model, images, labels, radius=radius, steps=steps, step_size=step_size, generator=draws(3))
    torch.testing.assert_close(adversarial_images, torch.stack(expected), atol=1e-6, rtol=0)
    assert 0 < int((is_correct(model, adversarial_images) == labels).sum()) < 24


# --- properties


@pytest.mark.parametrize("radius", [0.0, 0.001, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("step_size", [None, 10.0])
def test_perturbation_stays_in_radius_and_pixel_range(
    trained_model: Callable[..., Tapped], radius: float, step_size: float | None
) -> None:
    model, images = trained_model(), torch.rand(16, 1, 8, 8, generator=draws())
    labels = torch.arange(16) % 4
    adversarial_images = pgd(
        model, images, labels, radius=radius, steps=5, step_size=step_size, restarts=2, generator=draws()
    )
    assert (adversarial_images - images).abs().max() <= radius + 1e-6
    assert adversarial_images.min() >= 0
    assert adversarial_images.max() <= 1
    assert not adversarial_images.requires_grad
    if radius == 0:
        assert torch.equal(adversarial_images, images)


def test_misclassified_images_are_returned_unchanged(trained_model: Callable[..., Tapped]) -> None:
    model, images = trained_model(), torch.rand(12, 1, 8, 8, generator=draws())
    labels = (is_correct(model, images) + 1) % 4
    assert torch.equal(pgd(model, images, labels, radius=0.3, generator=draws()), images)


def test_more_restarts_succeed_at_least_as_often() -> None:
    """The starts differ, so that a single sample may fare worse; 150 together do not."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    images = inner(150)
    labels = is_correct(model, images)
    successes = []
    for restarts in (1, 2, 8):
        adversarial_images = pgd(
            model, images, labels, radius=0.08, steps=2, step_size=0.03, restarts=restarts, generator=draws()
        )
        successes.append(int((is_correct(model, adversarial_images) == labels).sum()))
    assert successes[0] >= successes[1] >= successes[2]
    assert successes[0] > successes[2]


def test_attack_is_independent_of_the_batch() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).double()
    images = inner(20).double()
    labels = is_correct(model, images)
    all_images = pgd(model, images, labels, radius=0.1, restarts=3, generator=draws())
    source = draws()
    parts = [
        pgd(model, part, part_labels, radius=0.1, restarts=3, generator=source)
        for part, part_labels in zip(images.split([3, 9, 8]), labels.split([3, 9, 8]), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), all_images)


@pytest.mark.parametrize("caller", [nullcontext, torch.no_grad, torch.inference_mode])
def test_network_is_unchanged_in_any_grad_mode(
    tiny_model: Callable[..., Tapped],
    state_of: Any,
    changed: Any,
    caller: Callable[[], AbstractContextManager[object]],
) -> None:
    """A network in train mode with one frozen batch norm, dropout, and existing gradients."""
    model = tiny_model(dropout=0.5).train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    before, modes = state_of(model), [module.training for module in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with caller():
        images = torch.rand(6, 1, 8, 8)
        labels = torch.arange(6) % 4
        original, randomness = images.clone(), torch.get_rng_state()
        adversarial_images = pgd(model, images, labels, radius=0.1, steps=3, generator=draws())
        logits, gradient = input_gradient(model.eval(), images, labels)
        assert torch.equal(images, original)
    model.train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    assert changed(before, state_of(model)) == set()
    assert modes == [module.training for module in model.modules()]
    for p, value in zip(model.parameters(), gradients, strict=True):
        assert p.requires_grad
        assert p.grad is not None
        assert torch.equal(p.grad, value)
    assert torch.equal(randomness, torch.get_rng_state())
    assert not any(tensor.requires_grad for tensor in (adversarial_images, logits, gradient))


def test_modes_are_restored_after_an_error(tiny_model: Callable[..., Tapped]) -> None:
    model = tiny_model().train()
    model.module.bn1.eval()  # type: ignore[union-attr]
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        pgd(model, torch.rand(2, 3, 8, 8), torch.zeros(2).long(), radius=0.1)
    assert modes == [module.training for module in model.modules()]


# --- masked gradients


class Hides(nn.Module):
    """Rounds its image first, which has a gradient of 0."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inside((images * 255).round() / 255)
        return logits


class Cuts(Hides):
    """Detaches its input from autograd."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


@pytest.mark.parametrize("kind", [Hides, Cuts])
def test_masked_gradients_are_detected(kind: type[Hides]) -> None:
    images, model = inner(10), linear()
    labels = is_correct(model, images)
    assert not zero_gradients(input_gradient(model, images, labels)[1]).any()
    logits, gradient = input_gradient(kind(model), images, labels)
    assert zero_gradients(gradient).all()
    assert torch.equal(logits.argmax(1), labels)
    assert pgd(kind(model), images, labels, radius=0.1, steps=3, generator=draws()).isfinite().all()


def test_zero_gradient_of_constant_network_is_detected() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, images: Tensor) -> Tensor:
            return self.bias.expand(len(images), -1)

    _, gradient = input_gradient(Constant(), inner(3), torch.zeros(3).long())
    assert zero_gradients(gradient).tolist() == [True] * 3


def test_saturated_softmax_is_detected_per_sample() -> None:
    """With a gap of 1000 the other probability is 0 in float32; with 10 it is not."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor([[1000.0], [0.0]])  # type: ignore[union-attr]
    images = torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)
    _, gradient = input_gradient(model, images, torch.zeros(2).long())
    assert zero_gradients(gradient).tolist() == [True, False]


def test_gradient_is_per_sample() -> None:
    model, images = linear(3), inner(5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    _, gradient = input_gradient(model, images, labels)
    weight = model[1].weight.detach()  # type: ignore[index]
    with torch.no_grad():
        expected = (model(images).softmax(1) - F.one_hot(labels, 3)) @ weight
    torch.testing.assert_close(gradient.flatten(1), expected)


def test_nonfinite_gradients_are_refused() -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = (images.flatten(1).sum(1) * 0).sqrt()
            return torch.stack([value, -value], 1)

    with pytest.raises(NonFiniteError, match="of 2 of 2 attacked images are NaN or infinite"):
        pgd(Root(), inner(2), torch.zeros(2).long(), radius=0.1)


@pytest.mark.parametrize(
    "settings", [{"radius": -0.1}, {"steps": 0}, {"restarts": 0}, {"step_size": -1.0}], ids=lambda w: next(iter(w))
)
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TutelageError, match="greater than or equal to"):
        pgd(linear(), inner(2), torch.zeros(2).long(), **({"radius": 0.1} | settings))
