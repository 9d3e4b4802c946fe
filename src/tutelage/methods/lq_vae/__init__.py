"""A filter in front of a classifier, against adversarial images: an autoencoder with a latent of bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tutelage.methods import NonNegative, Positive, method
from tutelage.methods.lq_vae.band import hard_bits, soft_bits
from tutelage.methods.lq_vae.fronts.lq_filter import filter_of
from tutelage.methods.lq_vae.losses import Bits, DecoderError, Divergence, EncoderError, GradientPenalty
from tutelage.models.attach import input_layer
from tutelage.models.networks.autoencoder import Decoder, Encoder
from tutelage.models.surgery import front
from tutelage.models.tapped import Tapped
from tutelage.terms import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run, initial_weights
from tutelage.training.updates import Alternating

RECONSTRUCTION = 10.0


@method(
    paper="Kyatham, Mishra, Prathosh 2020, arXiv 1903.09940",
    family="adversarial robustness",
    evidence="code",
)
def lq_vae(
    run: Run,
    *,
    latent: Annotated[int, Field(ge=1, le=4096)] = 64,
    width: Positive = 1.0,
    penalty: NonNegative = 10.0,
    lr: Positive = 3e-4,
    train_classifier: bool = True,
) -> Tapped:
    """LQ-VAE (adversarial images): a filter in front of the classifier, an autoencoder that keeps one bit per latent.

    The student is the classifier. It is trained on labels first, on unfiltered images; then an encoder E and two
    decoders are trained on the training images alone, and the student gets the filter G_d(b(mu(x))) before its first
    layer. With (mu, l) = E(x), x in [-1, 1], D the length of mu, tau = 0.1 and eps ~ N(0, I):

        z = mu + tau (1/2) exp(l/2) eps,   s = softsign(500 (tau^2 - z^2)),   b = sign(tau^2 - z^2)
        KL  = -(1/2) (1/D) sum_j (1 + l_j - mu_j^2 - exp(l_j))
        M_c = mean (G_c(s) - x)^2,   M_d = mean (G_d(b) - x)^2
        GP  = (0.1 - ||grad_x sum_j mu_j||_2)^2
        L(E) = KL + 10 M_c + penalty GP,   L(G_c) = 10 M_c,   L(G_d) = 10 M_d

    A bit is +1 inside the band |z| < tau and -1 outside. E, G_c and G_d are updated in this order on each batch, with a
    new forward pass and new noise each. No gradient of G_d's loss reaches E.

    **The filter has no gradient.** The accuracy under an attack that follows it says nothing, and the evaluation
    refuses it (``bpda=none``). The filter declares five surrogate gradients (``bpda=soft100``, the default, ``soft20``,
    ``soft5``, ``straight``, ``identity``); ``adaptive.py`` has an attack on the bits (``BitAttack``).

    Args:
        run: the run; a teacher is not used. The classifier's fit uses its recipe. The filter's fit uses its epochs and
            batch size, with a constant learning rate and without augmentation.
        latent: D, the number of bits.
        width: multiplies the channels of encoder and decoders (64 and 128, and 1024 units).
        penalty: the weight of GP, 10 in the authors' code. With 0 nothing limits the encoder's gradient.
        lr: of the three networks of the filter, with RMSProp.
        train_classifier: false for a student that was trained before (``--init``); the filter is put before it as it
            is.

    Raises:
        TutelageError: the inputs are not images.

    ``result.json`` records the share of bits that are +1 on the training images (``positive_bits``; near 1, the code
    has collapsed) and the mean entropy of a bit, in bits (``bit_entropy``).

    Deviations: the authors' learning rate decays by 2 % every 10,000 steps, and the published training has as many; it
    is constant here. RMSProp has the decay 0.9 [inferred: TensorFlow's]. Initial weights are drawn by torch's rule. The
    map is halved while it is larger than 4 and even: twice for 28x28 as in the code, three times for 32x32 [inferred].
    The randomised filter of one of the evaluation scripts, which decodes a sampled z, is not offered.
    """
    shape = run.data.image_shape
    student = run.student()
    input_layer(student.module)  # raises early if no front can be attached
    with initial_weights(run.seed, 1):
        encoder = Tapped(Encoder(shape, 2 * latent, width), (0.5,), (0.5,), {"code": "output"})
        continuous, discrete = (Tapped(Decoder(shape, latent, width), roles={"image": ""}) for _ in range(2))
    terms: dict[str, Term | Weighted] = {
        "divergence": Divergence(),
        "reconstruction": RECONSTRUCTION * EncoderError(continuous),
    }
    if penalty:
        terms["gradient"] = penalty * GradientPenalty(encoder)
    if train_classifier:
        run.fit(Learner(student, None, run.label_terms()))
    run.fit(
        Learner(discrete, None, _decoding(encoder, hard_bits), name="G_d"),
        Learner(encoder, None, terms, name="E"),
        Learner(continuous, None, _decoding(encoder, soft_bits), name="G_c"),
        update=Alternating(1),  # the first learner last: E, G_c, G_d
        data=replace(run.data, views=run.data.modality.unaugmented),
        optimizer=partial(torch.optim.RMSprop, lr=lr, alpha=0.9),
        schedule="constant",
    )
    share = (hard_bits(run.predict(encoder, run.data.train, ("code",))[:, :latent]) > 0).double().mean(0)
    run.note(positive_bits=float(share.mean()), bit_entropy=float(_entropy(share).mean()))
    example = run.example(student)
    mean, std = (values.flatten().expand(shape[0]).tolist() for values in (student.mean, student.std))
    front.apply(student.module, example, kind="lq_filter", mean=mean, std=std, latent=latent, width=width)
    inside = filter_of(student)
    inside.encoder.load_state_dict(encoder.module.state_dict())
    inside.decoder.load_state_dict(discrete.module.state_dict())
    return student.rewrapped()


def _entropy(share: Tensor) -> Tensor:
    """The entropy in bits of binary variables that are 1 with these probabilities, of the same shape."""
    entropy: Tensor = torch.special.entr(torch.stack([share, 1 - share])).sum(0) / math.log(2)
    return entropy


def _decoding(encoder: Tapped, bits: Callable[[Tensor], Tensor]) -> dict[str, Term | Weighted]:
    """The loss of a decoder on the encoder's bits."""
    return {"reconstruction": RECONSTRUCTION * DecoderError().on(Bits(encoder, bits))}
