"""Semi-supervised learning with a generative adversarial network, and stronger separation of classes."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods._parts import labelled_parts
from tutelage.methods.i2gan.discrimination import Discrimination
from tutelage.methods.i2gan.matching import FeatureMatching, Repeated
from tutelage.models import zoo
from tutelage.models.generator import Generator, is_generator
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA
from tutelage.terms import CrossEntropy, Term, Weighted
from tutelage.terms.generated import GeneratedImages
from tutelage.training.learner import Learner
from tutelage.training.run import Run, initial_weights
from tutelage.training.updates import Alternating

SECOND = "second"
"""The stream of the generator's real images."""


@method(
    paper="Park, Jung, Teoh 2020, Revisiting ImprovedGAN with Metric Learning for Semi-Supervised Learning, ICPR",
    family="semi-supervised",
    evidence="abstract",
)
def i2gan(
    run: Run,
    *,
    unsupervised: NonNegative = 3.0,
    generated: Annotated[int, Field(ge=1, le=1000)] = 4,
    labelled: Share = 0.5,
    generator: str = "dcgan",
    lr: Positive = 3e-4,
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999,
) -> Tapped:
    """I2GAN (few labels): the student also discriminates unlabelled images from a generator's, with more weight.

        L_D = mean_l CE(l(x), y) + unsupervised / 2 [ mean_u -log P(x) + mean_g -log (1 - P(G(z))) ]
        L_G = (1/D) sum_d | mean_u h_d(x) - mean_g h_d(G(z)) |
        P(x) = Z / (Z + 1),   Z = sum_k exp(l_k(x))

    The student is the discriminator; l are its logits, h is its embedding, the input of the classifier. Each batch has
    labelled images (l) and unlabelled ones (u; label -1, see ``--noise missing:RATE``), and ``generated`` times as many
    generated images (g) as unlabelled ones. After the student, the generator G is updated, with new latents and other
    real images. The average of the student's weights is returned, without G.

    This is ImprovedGAN (Salimans et al. 2016, arXiv 1606.03498) with unsupervised = 1 and generated = 1. By the paper,
    its unsupervised loss raises the confidence on real images and, together with CE, the variance between classes
    relative to that within classes. I2GAN strengthens this by unsupervised > 1 and generated > 1.

    Args:
        run: the run; a teacher is not used. An epoch is one pass over the samples without a label. If all samples have
            labels, each counts as both. The recipe's optimiser and learning rate do not apply, its schedule does.
        unsupervised: lambda, the weight of the unsupervised loss. With 0 the student learns from the labelled images
            alone, and there is no generator. Above 1, a larger weight can lower the accuracy with few labels.
        generated: generated images per unlabelled image, n_g / n_u, in both losses.
        labelled: the share of a batch that has labels; at least one sample of each process.
        generator: the name of a built-in generator, such as ``dcgan``, ``dcganx0.5`` or ``mlp-gan``.
        lr: of both networks, with Adam and betas (0.5, 0.999).
        decay: of the average, a <- decay a + (1 - decay) w after each step, with at least 1 - 1/t in step t for 1 -
            decay. Choose a smaller one for runs of fewer than some ten thousand steps.

    Evidence: only the abstract was available. It names the two changes, but no values; lambda = 3 and n_g = 4 n_u are
    [inferred], and so is the enlarged n_g in L_G. Everything else is that of the authors' code of ImprovedGAN.

    Deviations: latents are standard normal instead of uniform. Labelled images are not among the unlabelled ones, but
    they are among the real images of L_G. The average starts with the first weights after a step. The networks of
    ImprovedGAN (weight normalisation, Gaussian noise, initialisation by data) and its schedule (constant for two thirds
    of the run, then linear to 0) are not built in. Batch normalisation of the student, which ImprovedGAN avoids, runs
    on labelled, unlabelled and generated images separately, and only real images update its running statistics.
    Several processes draw the same latents.
    """
    student = run.trace(run.student())
    average = EMA(student, decay)
    parts = labelled_parts(run, labelled)
    terms: dict[str, Term | Weighted] = {"ce": CrossEntropy().on(parts.labelled)}
    fit = partial(run.fit, order=parts.order, optimizer=partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.999)))
    if not unsupervised:
        fit(Learner(student, average, terms, deployed=average.model))
        return average.model
    images = _generator(generator, run)
    repeated = Repeated(parts.unlabelled, generated)
    terms["real"] = unsupervised / 2 * Discrimination(genuine=True).on(parts.unlabelled)
    terms["generated"] = unsupervised / 2 * Discrimination(genuine=False).on(GeneratedImages(images, repeated))
    fit(
        Learner(images, None, {"features": FeatureMatching(student, generated).on(repeated)}, name="generator"),
        Learner(student, average, terms, deployed=average.model),
        update=Alternating(1, SECOND),
        streams={SECOND: run.data.train},
    )
    return average.model


def _generator(name: str, run: Run) -> Generator:
    """A built-in generator of images of the run's shape; its initial weights depend on the seed alone.

    Raises:
        TutelageError: there is none of this name.
    """
    shape = run.data.image_shape
    with initial_weights(run.seed, 1):
        module = zoo.build(name, num_classes=run.data.num_classes, input_shape=shape, modality=run.data.modality)
    if not is_generator(module):
        raise TutelageError(f"generator={name!r} is no generator of images; give one, such as dcgan or mlp-gan")
    return Generator(module)
