"""The hinge losses of discriminator and generator, and the batches of a discriminator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError
from tutelage.methods.akdg.adversarial import Fooling, Hinge, hinge
from tutelage.methods.akdg.views import TeacherImages
from tutelage.models.generator import Generator
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms.generated import GeneratedImages


class Slope(nn.Module):
    """D(x) = 3 x the sum of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.score.weight, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x.flatten(1))  # type: ignore[no-any-return]


class Dim(nn.Module):
    """Images of 2x2 pixels: the sigmoid of the latent."""

    latent = 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(z)).view(-1, 1, 2, 2)


@pytest.fixture
def critic() -> Tapped:
    return Tapped(Slope(), roles={"score": "score"})


def score_outputs(scores: Tensor) -> Outputs:
    return Outputs(None, {"score": scores[:, None]})


def test_by_hand() -> None:
    scores = torch.tensor([-2.0, -1.0, 0.0, 0.25, 1.0, 3.0])
    assert hinge(scores, genuine=True).tolist() == [3.0, 2.0, 1.0, 0.75, 0.0, 0.0]
    assert hinge(scores, genuine=False).tolist() == [0.0, 0.0, 1.0, 1.25, 2.0, 4.0]
    assert Hinge(genuine=True)(score_outputs(scores), None, None).tolist() == [3.0, 2.0, 1.0, 0.75, 0.0, 0.0]


def test_against_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(50, 1, generator=generator, dtype=torch.float64)
    for genuine, sign in ((True, 1), (False, -1)):
        expected = [max(0.0, 1 - sign * score) for score in scores.flatten().tolist()]
        assert hinge(scores, genuine=genuine).tolist() == pytest.approx(expected, abs=1e-15)


def test_critic_scoring_zero_has_loss_two_and_no_generator_gradient(critic: Tapped) -> None:
    nn.init.zeros_(critic.module.score.weight)  # type: ignore[union-attr, arg-type]
    images = torch.rand(5, 1, 2, 2)
    scores = critic.tap(images, ("score",))
    loss = Hinge(genuine=True)(scores, None, None).mean() + Hinge(genuine=False)(scores, None, None).mean()
    assert loss == 2
    assert not Fooling(critic)(Outputs(None, {"image": images}), None, None).any()


def test_confident_correct_critic_has_no_gradient() -> None:
    scores = torch.tensor([1.5, 4.0], requires_grad=True)
    (hinge(scores, genuine=True).sum() + hinge(-scores, genuine=False).sum()).backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_generator_loss_gradient_reaches_images_not_critic(critic: Tapped) -> None:
    images = torch.rand(5, 1, 2, 2, requires_grad=True)
    term = Fooling(critic)
    value = term(Outputs(None, {"image": images}), None, None)
    assert value.tolist() == pytest.approx([-3 * image.sum().item() for image in images], rel=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), images)
    assert torch.equal(gradient, torch.full_like(images, -3.0))
    assert not list(term.parameters())
    assert not term.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_becomes_float32_and_float64_is_preserved(dtype: torch.dtype) -> None:
    value = hinge(torch.tensor([0.5, -0.5], dtype=dtype), genuine=True)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.tolist() == [0.5, 1.5]


def test_nan_is_propagated() -> None:
    assert hinge(torch.tensor([float("nan")]), genuine=True).isnan().all()
    assert hinge(torch.tensor([float("inf")]), genuine=False).isinf().all()


def test_generated_images_are_new_and_detached(batch_of: Callable[[Tensor], Batch]) -> None:
    generator = Generator(Dim())
    batch, no_outputs = batch_of(torch.arange(6)), Outputs(None)
    view = GeneratedImages(generator)
    first, second = view(batch, no_outputs, None), view(batch, no_outputs, None)
    assert first.inputs.shape == (6, 1, 2, 2)
    assert not first.inputs.requires_grad
    assert not torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.inputs, GeneratedImages(generator)(batch, no_outputs, None).inputs)
    assert (first.targets == UNLABELLED).all()
    assert first.weight is None
    assert generator.module.training  # still in train mode
    assert int(generator.module.norm.num_batches_tracked) == 3  # type: ignore[union-attr, arg-type]
    assert generator.passes == 18


def test_teacher_images_are_those_of_the_source(batch_of: Callable[[Tensor], Batch]) -> None:
    images = torch.rand(6, 1, 2, 2)
    batch = TeacherImages()(batch_of(torch.arange(6)), Outputs(None), Outputs(None, {"image": images}))
    assert batch.inputs is images
    assert (batch.targets == UNLABELLED).all()
    with pytest.raises(TutelageError, match="source"):
        TeacherImages()(batch, Outputs(None), None)
