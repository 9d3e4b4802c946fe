"""The convolutional autoencoder: shapes, the layers of LQ-VAE, and that it learns to reconstruct."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tutelage.models import zoo
from tutelage.models.generator import Generator
from tutelage.models.networks.autoencoder import Autoencoder, Decoder, Encoder
from tutelage.models.tapped import Tapped
from tutelage.tasks import task_of_network, wrap_network

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 32, 32), (3, 28, 28), (1, 8, 8), (1, 14, 14), (1, 5, 7), (3, 24, 48), (2, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_reconstructions_have_the_shape_of_the_images_and_are_in_the_unit_range(shape: tuple[int, int, int]) -> None:
    network = Autoencoder(shape, latent=7, width=0.1)
    images = torch.rand(3, *shape)
    assert network.encoder(images).shape == (3, 7)
    assert network(images).shape == images.shape
    extreme = network.decoder(1e4 * torch.randn(5, 7))
    assert 0 <= extreme.min() < extreme.max() <= 1


def test_the_layers_for_28_pixels_are_those_of_lq_vae() -> None:
    """Card: conv3 64/s1, 64/s2, 128/s2, 128/s1, FC 1024; FC 1024, FC 7*7*128, deconv3 128/s1, 128/s2, 64/s2, 1/s1."""

    def convolutions(network: nn.Module, kind: Any) -> list[tuple[int, int]]:
        layers = [module for module in network.modules() if isinstance(module, kind)]
        assert all(module.kernel_size == (3, 3) for module in layers)
        return [(module.out_channels, module.stride[0]) for module in layers]

    def linear(network: nn.Module) -> list[tuple[int, int]]:
        return [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]

    encoder, decoder = Encoder((1, 28, 28), 128), Decoder((1, 28, 28), 64)
    assert convolutions(encoder, nn.Conv2d) == [(64, 1), (64, 2), (128, 2), (128, 1)]
    assert linear(encoder) == [(7 * 7 * 128, 1024), (1024, 128)]
    assert linear(decoder) == [(64, 1024), (1024, 7 * 7 * 128)]
    assert convolutions(decoder, nn.ConvTranspose2d) == [(128, 1), (128, 2), (64, 2), (1, 1)]
    assert {m.negative_slope for n in (encoder, decoder) for m in n.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    coloured = Encoder((3, 32, 32), 128)  # one more stage
    assert convolutions(coloured, nn.Conv2d) == [(64, 1), (64, 2), (128, 2), (128, 2), (128, 1)]


def test_every_weight_acts_on_the_output() -> None:
    network = Autoencoder((1, 28, 28), latent=5, width=0.1).double()
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    gradients = torch.autograd.grad((network(images) - images).square().mean(), list(network.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_one_image_does_not_act_on_another() -> None:
    """Without batch normalisation, the result for an image does not depend on the batch, in train mode either."""
    network = Autoencoder((1, 28, 28), latent=5, width=0.1).double().train()
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    assert torch.allclose(network(images)[:1], network(images[:1]), rtol=0, atol=1e-12)


def test_it_learns_to_reconstruct() -> None:
    """Images of one bar at 28 positions: two latents hold the position."""
    torch.manual_seed(0)
    columns = torch.arange(28)
    images = (columns[:, None] - columns[None]).abs().le(2).float()[:, None, None, :].expand(28, 1, 28, 28)
    network = Autoencoder((1, 28, 28), latent=4, width=0.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (network(images) - images).square().mean()
        loss.backward()
        optimizer.step()
    mean = (images - images.mean(0)).square().mean()
    assert loss < 0.2 * mean


def test_roles_and_kinds() -> None:
    network = zoo.build("autoencoder-16x0.25", num_classes=10, input_shape=(1, 28, 28))
    assert isinstance(network, Autoencoder)
    assert task_of_network(network) is None  # the attribute latent alone makes no generator
    tapped = Tapped(network)
    images = torch.rand(2, 1, 28, 28)
    outputs = tapped.tap(images, ("latent", "image"))
    assert torch.equal(outputs["latent"], network.encoder(images))
    assert torch.equal(outputs["image"], network(images))
    assert isinstance(wrap_network(Decoder((1, 28, 28), 16, 0.25)), Generator)


def test_impossible_sizes_raise(refused: Any) -> None:
    with refused("width", "take a larger one"):
        Autoencoder((1, 28, 28), width=0.001)
    with refused("outputs", "at least 1"):
        Encoder((1, 28, 28), 0)
    with refused("latent", "at least 1"):
        Decoder((1, 28, 28), 0)
