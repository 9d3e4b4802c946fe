"""The bits and the losses of LQ-VAE: the card's numbers, plain loops in float64, and which gradients reach whom."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.methods.lq_vae.band import hard_bits, soft_bits
from tutelage.methods.lq_vae.losses import (
    Bits,
    DecoderError,
    Divergence,
    EncoderError,
    GradientPenalty,
    gradient_penalty,
    normal_divergence,
    pixel_error,
    sampled,
)
from tutelage.models.networks.autoencoder import Decoder, Encoder
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped


def test_a_bit_says_whether_the_entry_is_within_the_band() -> None:
    """The card's table; an implementation by the sign of z fails it."""
    z = torch.tensor([-0.2, -0.05, 0.0, 0.0999, 0.1001])
    assert hard_bits(z).tolist() == [-1, 1, 1, 1, -1]
    assert hard_bits(torch.tensor([0.1, -0.1])).tolist() == [-1, -1]
    assert hard_bits(z.double()).dtype == torch.float64


def test_soft_bits_by_hand() -> None:
    z = torch.tensor([0.0, 0.2, -0.2, 0.1, -0.1], dtype=torch.float64)
    expected = torch.tensor([5 / 6, -0.9375, -0.9375, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(soft_bits(z), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slope", [5.0, 20.0, 500.0])
def test_soft_bits_have_the_sign_of_the_hard_ones_and_the_stated_derivative(slope: float) -> None:
    """The derivative is -2 slope z / (1 + |u|)^2, which vanishes near the edges of the band for a large slope."""
    z = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64) + 0.0003
    z.requires_grad_()
    bits = soft_bits(z, slope)
    assert torch.equal(bits.sign(), hard_bits(z))
    (gradient,) = torch.autograd.grad(bits.sum(), z)
    u = slope * (0.01 - z.detach() ** 2)
    torch.testing.assert_close(gradient, -2 * slope * z.detach() / (1 + u.abs()) ** 2)


def test_hard_bits_have_no_gradient() -> None:
    z = torch.randn(4, 3, requires_grad=True)
    assert not hard_bits(z).requires_grad


def loops_divergence(mean: Tensor, log_variance: Tensor) -> list[float]:
    return [
        -0.5 * sum(1 + b - a**2 - math.exp(b) for a, b in zip(row, logs, strict=True)) / len(row)
        for row, logs in zip(mean.tolist(), log_variance.tolist(), strict=True)
    ]


def test_the_divergence_equals_plain_loops_and_is_0_for_the_normal_distribution() -> None:
    mean, log_variance = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = torch.tensor(loops_divergence(mean, log_variance), dtype=torch.float64)
    torch.testing.assert_close(normal_divergence(mean, log_variance), expected)
    assert normal_divergence(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]
    assert (normal_divergence(mean, log_variance) >= 0).all()


def test_the_divergence_is_that_of_torch_for_each_entry() -> None:
    mean, log_variance = torch.randn(2, 5, 7, dtype=torch.float64)
    one = torch.distributions.Normal(mean, (log_variance / 2).exp())
    zero = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(one, zero).mean(1)
    torch.testing.assert_close(normal_divergence(mean, log_variance), expected)


class Linear(nn.Module):
    """mu = A x and l = 0 for an image of four pixels."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)
        self.output = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1) @ self.matrix.T
        code: Tensor = self.output(torch.cat([mean, torch.zeros_like(mean)], 1))
        return code


def linear_encoder(matrix: Tensor) -> Tapped:
    return Tapped(Linear(matrix), (0.5,), (0.5,), {"code": "output"})


def batch_of_images(count: int = 3, side: int = 2) -> Batch:
    index = torch.arange(count)
    return Batch(torch.rand(count, 1, side, side), index % 2, index, None)


def test_the_penalty_of_a_linear_encoder_is_exact() -> None:
    """The gradient of sum_j mu_j by pixels in [-1, 1] is A^T 1 for every image, and GP = (0.1 - ||A^T 1||)^2."""
    matrix = torch.randn(5, 4)
    batch = batch_of_images()
    encoder = linear_encoder(matrix)
    value = GradientPenalty(encoder)(Outputs(torch.zeros(3, 1)), None, batch)
    expected = (0.1 - matrix.double().sum(0).norm()) ** 2
    torch.testing.assert_close(value.double(), expected.expand(3), rtol=1e-5, atol=1e-6)
    value.sum().backward()
    norm = matrix.sum(0).norm()
    by_hand = 3 * 2 * (norm - 0.1) * matrix.sum(0) / norm  # the same for every row of A
    torch.testing.assert_close(encoder.module.get_parameter("matrix").grad, by_hand.expand(5, 4))


def test_the_penalty_is_two_sided_and_averages_no_gradients() -> None:
    gradient = torch.tensor([[[0.1, 0.0]], [[0.0, 0.0]], [[0.3, 0.4]]], dtype=torch.float64)
    torch.testing.assert_close(gradient_penalty(gradient), torch.tensor([0.0, 0.01, 0.16], dtype=torch.float64))


def test_the_penalty_runs_where_gradients_are_off() -> None:
    """As in the dry run."""
    with torch.no_grad():
        value = GradientPenalty(linear_encoder(torch.randn(5, 4)))(Outputs(torch.zeros(3, 1)), None, batch_of_images())
    assert value.shape == (3,)


def test_the_noise_has_the_scale_of_the_code() -> None:
    """tau / 2 = 0.05 for l = 0, and 0.05 e for l = 2."""
    torch.manual_seed(0)
    code = torch.cat([torch.full((20000, 2), 3.0), torch.tensor([[0.0, 2.0]]).expand(20000, 2)], 1)
    noise = sampled(code) - 3
    assert noise[:, 0].std() == pytest.approx(0.05, rel=0.03)
    assert noise[:, 1].std() == pytest.approx(0.05 * math.e, rel=0.03)
    assert noise.mean(0).abs().max() < 0.005


def test_errors_are_of_pixels_between_minus_one_and_one() -> None:
    one, other = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    expected = ((2 * one - 1) - (2 * other - 1)).square().mean((1, 2, 3))
    torch.testing.assert_close(pixel_error(one, other), expected)


def test_each_loss_trains_its_own_networks() -> None:
    """No gradient of the decoders' losses reaches the encoder, and none of KL and GP a decoder."""
    encoder = Tapped(Encoder((1, 8, 8), 6, 0.1), (0.5,), (0.5,), {"code": "output"})
    decoder, other = (Tapped(Decoder((1, 8, 8), 3, 0.1), roles={"image": ""}) for _ in range(2))
    networks = {"encoder": encoder, "decoder": decoder, "other": other}
    batch = batch_of_images(4, 8)
    code = Outputs(None, {"code": encoder.tap(batch.inputs, ("code",))["code"]})

    def reached(value: Tensor) -> set[str]:
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        value.mean().backward()
        return {name for name, network in networks.items() if any(p.grad is not None for p in network.parameters())}

    assert reached(Divergence()(code, None, batch)) == {"encoder"}
    assert reached(GradientPenalty(encoder)(code, None, batch)) == {"encoder"}
    for bits in (hard_bits, soft_bits):
        view = Bits(encoder, bits)(batch, Outputs(None), None)
        assert view.inputs.shape == (4, 3)
        assert torch.equal(view.second, batch.inputs)  # type: ignore[arg-type]
        image = Outputs(None, {"image": other.tap(view.inputs, ("image",))["image"]})
        assert reached(DecoderError()(image, None, view)) == {"other"}
    code = Outputs(None, {"code": encoder.tap(batch.inputs, ("code",))["code"]})
    assert reached(EncoderError(decoder)(code, None, batch)) == {"encoder", "decoder"}
