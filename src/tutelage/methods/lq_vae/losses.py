"""The losses of LQ-VAE (Kyatham et al. 2020), each per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.methods.lq_vae.band import BAND, soft_bits
from tutelage.methods.small_data.reconstruction import reconstruction_error
from tutelage.models.outputs import Outputs, at_least_float32
from tutelage.models.tapped import Tapped
from tutelage.terms.precision import full_precision
from tutelage.terms.term import Term, View

TARGET = 0.1
"""The norm of the encoder's gradient that the penalty demands, for pixels in [-1, 1]."""


@full_precision
def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """-1/2 (1/D) sum_j (1 + l_j - mu_j^2 - exp(l_j)) per sample: KL(N(mu, exp(l)) || N(0, I)) / D.

    Args:
        mean: mu, (B, D).
        log_variance: l, (B, D).

    Returns:
        (B,), at least 0, and 0 for mu = l = 0.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean(1)


@full_precision
def gradient_penalty(gradient: Tensor, target: float = TARGET) -> Tensor:
    """(target - ||g||_2)^2 per sample: two-sided, so that smaller gradients are penalised, too.

    Args:
        gradient: g, (B, ...), of the sum of the latent's means by the pixels in [-1, 1].
        target: the demanded norm.

    Returns:
        (B,).
    """
    norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (target - norm).square()


def pixel_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """The mean squared error of pixels in [-1, 1], of images (B, C, H, W) in [0, 1], per sample (B,)."""
    return 4 * reconstruction_error(reconstruction, images)  # four times that of pixels in [0, 1]


def sampled(code: Tensor) -> Tensor:
    """z = mu + tau (1/2) exp(l / 2) eps with eps ~ N(0, I), from torch's global generator.

    The noise is that of the authors' code; the divergence takes exp(l) for the variance, 400 times as much.

    Args:
        code: (mu, l), (B, 2 D).

    Returns:
        (B, D).
    """
    mean, log_variance = code.chunk(2, dim=1)
    return mean + 0.5 * BAND * (0.5 * log_variance).exp() * torch.randn_like(mean)


class Divergence(Term):
    """``normal_divergence`` of the encoder's code, per sample (B,)."""

    reads_labels = False
    roles = ("code",)
    teacher_roles = ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,), without unit."""
        mean, log_variance = at_least_float32(student["code"]).chunk(2, dim=1)
        return normal_divergence(mean, log_variance)


class GradientPenalty(Term):
    """``gradient_penalty`` of the gradient of sum_j mu_j by the image, per sample (B,).

    It runs the encoder again, and its gradient with respect to the weights is a second derivative.

    Args:
        encoder: from pixels in [0, 1] to codes (B, 2 D), with a normalisation to [-1, 1]; the learner's model.
    """

    reads_labels = False
    roles = ()
    teacher_roles = ()

    def __init__(self, encoder: Tapped) -> None:
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, so that torch does not register it as a submodule

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,)."""
        (encoder,) = self._encoder
        images = self.required(batch, "the batch, for its images").inputs
        encoder.passes += len(images)
        with torch.enable_grad():  # the dry run has none
            pixels = at_least_float32(encoder.normalised(images)).detach().requires_grad_()
            mean = encoder.module(pixels).chunk(2, dim=1)[0]
            (gradient,) = torch.autograd.grad(mean.sum(), pixels, create_graph=True)
        return gradient_penalty(gradient)


class Bits(View):
    """The bits of sampled codes as inputs of a decoder, without a gradient; ``Batch.second`` has the images.

    Args:
        encoder: from images to codes (B, 2 D).
        bits: from latents (B, D) to bits (B, D).
    """

    def __init__(self, encoder: Tapped, bits: Callable[[Tensor], Tensor]) -> None:
        self.encoder, self.bits = encoder, bits

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """The batch with bits in the place of images."""
        with torch.no_grad():
            code = self.encoder.tap(batch.inputs, ("code",))["code"]
            return replace(batch, inputs=self.bits(sampled(code)), second=batch.inputs)


class DecoderError(Term):
    """``pixel_error`` of the image that the learner's decoder makes of the bits of a ``Bits``, per sample (B,)."""

    reads_labels = False
    roles = ("image",)
    teacher_roles = ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) in squared units of pixels in [-1, 1]."""
        batch = self.required(batch, "the batch, for its images")
        return pixel_error(student["image"], self.required(batch.second, "the images", "apply it on Bits"))


class EncoderError(Term):
    """``pixel_error`` of the image that a decoder makes of the learner's soft bits, per sample (B,).

    Args:
        decoder: from bits (B, D) to images in [0, 1], the model of another learner.
    """

    reads_labels = False
    roles = ("code",)
    teacher_roles = ()

    def __init__(self, decoder: Tapped) -> None:
        super().__init__()
        self._decoder = (decoder,)  # in a tuple, so that torch does not register it as a submodule

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) in squared units of pixels in [-1, 1]."""
        (decoder,) = self._decoder
        images = self.required(batch, "the batch, for its images").inputs
        bits = soft_bits(sampled(at_least_float32(student["code"])))
        return pixel_error(decoder.tap(bits, ("image",))["image"], images)
