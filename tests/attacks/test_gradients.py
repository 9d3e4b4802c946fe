"""Gradients of random networks and of layers without a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.planes import distances, draws, labels_of, near_grey, plane
from tutelage.attacks import PGD, SurrogateGradient, input_gradient, without_gradient


class Noisy(nn.Module):
    """A plane whose logits are multiplied by a random number at each pass: the gradient's mean is the plane's."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.passes = inside, 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.inside(images) * (1 + 3 * torch.randn(len(images), 1, dtype=images.dtype))
        return logits


def spread(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def test_gradients_are_averaged_over_draws() -> None:
    model, images = plane(), near_grey(3)
    labels = torch.zeros(3).long()
    _, exact = input_gradient(model, images, labels, spread)
    errors = []
    torch.manual_seed(0)
    for count in (1, 400):
        noisy = Noisy(model)
        _, gradient = input_gradient(noisy, images, labels, spread, draws=count)
        assert noisy.passes == count
        errors.append(float((gradient - exact).norm() / exact.norm()))
    assert errors[0] > 0.8
    assert errors[1] < 0.3  # 3 / sqrt(400) = 0.15


def test_the_logits_of_several_draws_are_the_mean_prediction() -> None:
    values = iter([torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 0.0]])])

    class Sequence(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return next(values) + 0 * images.sum()

    logits, _ = input_gradient(Sequence(), torch.zeros(1, 1), torch.zeros(1).long(), draws=2)
    expected = (torch.tensor([[2.0, 0.0]]).softmax(1) + torch.tensor([[-1.0, 0.0]]).softmax(1)) / 2
    torch.testing.assert_close(logits.softmax(1), expected)
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(1))


def test_averaged_gradients_break_a_random_network_that_one_draw_does_not() -> None:
    model, images = Noisy(plane(scale=0.3)), near_grey(60)
    labels, exact = labels_of(model.inside, images), distances(model.inside, images)["linf"]
    radius = 1.5 * float(exact.max())
    torch.manual_seed(0)

    def broken(passes: int) -> float:
        attack = PGD(radius=radius, steps=4, draws=passes)
        attack = attack.replace(loss=spread_down)
        return float((labels_of(model.inside, attack(model, images, labels, draws())) != labels).double().mean())

    assert broken(30) > broken(1) + 0.1


def spread_down(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the label's logit's lead."""
    other = 1 - labels
    return logits.gather(1, other[:, None]).squeeze(1) - logits.gather(1, labels[:, None]).squeeze(1)


def rounded(images: Tensor) -> Tensor:
    return (images * 31).round() / 31


def test_a_surrogate_keeps_the_output_and_restores_the_gradient() -> None:
    model, images = plane(), near_grey(40)
    masked, replaced = (nn.Sequential(layer, model) for layer in (Layer(rounded), SurrogateGradient(rounded)))
    labels = labels_of(masked, images)
    assert torch.equal(replaced(images), masked(images))
    assert without_gradient(masked, images, labels).all()
    assert not without_gradient(replaced, images, labels).any()
    _, gradient = input_gradient(replaced, images, labels)
    _, expected = input_gradient(model, rounded(images), labels)
    torch.testing.assert_close(gradient, expected)
    attack = PGD(radius=0.1, steps=10)
    adversarial = [
        labels_of(masked, attack(network, images, labels, draws())) != labels for network in (masked, replaced)
    ]
    assert adversarial[1].sum() > adversarial[0].sum()


class Layer(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.function(images)  # type: ignore[operator]
        return result


def test_a_surrogate_may_be_any_differentiable_function() -> None:
    images = torch.tensor([[0.3, 0.6]], requires_grad=True)
    result = SurrogateGradient(rounded, lambda x: x**2)(images)
    assert torch.equal(result, rounded(images))
    (gradient,) = torch.autograd.grad(result.sum(), images)
    torch.testing.assert_close(gradient, 2 * images.detach())


def test_a_surrogate_of_another_shape_is_refused() -> None:
    images = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match=r"returns \(2,\) and the layer \(2, 3\)"):
        SurrogateGradient(rounded, lambda x: x.sum(1))(images)


def test_nan_counts_as_no_gradient() -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = (images.flatten(1)[:, 0] - 0.5).clamp(min=0).sqrt()
            return torch.stack([value, -value], 1)

    images = torch.tensor([[0.5], [0.9]])
    assert without_gradient(Root(), images, torch.zeros(2).long()).tolist() == [True, False]
