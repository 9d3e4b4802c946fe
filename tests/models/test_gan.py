"""Image generators and their wrapper ``Generator``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.generator import Generator
from tutelage.models.networks.dcgan import DCGAN
from tutelage.models.networks.mlp_gan import MLPGenerator
from tutelage.models.networks.resnet import ResNet
from tutelage.models.tapped import Tapped
from tutelage.tasks import wrap_network

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 5, 7), (3, 24, 48), (2, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [DCGAN, MLPGenerator])
def test_images_have_the_requested_shape_and_range(make: Any, shape: tuple[int, int, int]) -> None:
    generator = make(shape, width=0.1, latent=7)
    images = generator(30 * torch.randn(3, 7))
    assert images.shape == (3, *shape)
    assert 0 <= images.min() < images.max() <= 1


def test_parameter_count_of_the_paper() -> None:
    """2.2 million for colour images of 32x32 pixels."""
    count = sum(p.numel() for p in MLPGenerator((3, 32, 32)).parameters())
    assert count == pytest.approx(2.2e6, rel=0.02)
    layers = [m for m in DCGAN((3, 32, 32)).modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == 5
    assert DCGAN((3, 32, 32)).start == (512, 4, 4)


@pytest.mark.parametrize("make", [DCGAN, MLPGenerator])
def test_a_too_small_width_raises(make: Any, refused: Any) -> None:
    with refused("width", "take a larger one"):
        make((1, 8, 8), width=0.0001)


# --- Generator


class Line(nn.Module):
    latent = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(3, 4), nn.Dropout(0.5)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.drop(self.linear(z))).view(-1, 1, 2, 2)


def test_a_module_with_latent_is_wrapped_as_a_generator() -> None:
    assert isinstance(wrap_network(Line()), Generator)
    classifier = wrap_network(ResNet(8, 4, 1), [0.4], [0.3])
    assert type(classifier) is Tapped
    assert classifier.mean.item() == pytest.approx(0.4)


def test_tap_draws_one_latent_per_input_from_the_global_generator() -> None:
    generator = Generator(Line()).eval()
    torch.manual_seed(3)
    outputs = generator.tap(torch.zeros(5, 1, 2, 2), ("image",))
    torch.manual_seed(3)
    latents = torch.randn(5, 3)
    assert torch.equal(outputs["latent"], latents)
    assert torch.equal(outputs["image"], generator.module(latents))
    assert outputs.logits is None
    assert outputs["image"].requires_grad
    assert not torch.equal(generator.tap(torch.zeros(5, 1, 2, 2), ("image",))["image"], outputs["image"])
    assert generator.passes == 10


def test_samples_depend_on_the_seed_and_have_no_side_effects() -> None:
    generator = Generator(Line()).train()
    before = torch.get_rng_state()
    first, second = (generator.sample(1025, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (1025, 1, 2, 2)
    assert not first.requires_grad
    assert generator.module.training
    assert torch.equal(torch.get_rng_state(), before)
    other = generator.sample(1025, torch.Generator().manual_seed(2))
    assert not torch.equal(first, other)


def test_logits_and_stages_raise(refused: Any) -> None:
    generator = Generator(Line())
    for role in ("logits", "embedding", "stage1"):
        with refused("Line is a generator", role, "akdg"):
            generator.tap(torch.zeros(2, 1, 2, 2), (role,))
    with refused("Line is a generator", "stages"):
        generator.trace(torch.zeros(2, 1, 2, 2))
    with refused("latents (B, 3)", "(2, 1, 2, 2)", "give a classifier"):
        generator(torch.zeros(2, 1, 2, 2))


def test_a_copy_is_a_generator() -> None:
    generator = Generator(Line())
    copied = copy.deepcopy(generator)
    assert isinstance(copied, Generator)
    samples = [g.sample(2, torch.Generator().manual_seed(0)) for g in (generator, copied)]
    assert torch.equal(*samples)


def test_a_classifier_with_an_attribute_latent_is_no_generator() -> None:
    from tutelage.models.generator import Generator
    from tutelage.models.tapped import Tapped

    for classifier in (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
    ):
        classifier.latent = 16  # type: ignore[assignment]
        assert type(wrap_network(classifier)) is Tapped
    generator = wrap_network(DCGAN((1, 8, 8), 0.1).train())
    assert type(generator) is Generator
    assert all(module.training for module in generator.modules())
    assert generator.module.get_buffer("body.0.num_batches_tracked") == 0
