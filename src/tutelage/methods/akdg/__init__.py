"""Adversarial knowledge distillation for a compact generator."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, cast

import torch
from pydantic import Field

from tutelage.data import CropsAndFlips
from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, Positive, method
from tutelage.methods.akdg.adversarial import Fooling, Hinge
from tutelage.methods.akdg.critic import Critic
from tutelage.methods.akdg.views import TeacherImages
from tutelage.models.generator import Generator
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import Term, Weighted
from tutelage.terms.generated import GeneratedImages
from tutelage.training.learner import Learner
from tutelage.training.run import Run
from tutelage.training.updates import Alternating

Terms = dict[str, Term | Weighted]


@method(
    paper="Tsunashima, Kataoka, Yamato, Chen, Morishima 2020, doi 10.1109/ICPR48806.2021.9413150",
    family="generative",
    task="generation",
    evidence="abstract",
)
def akdg(
    run: Run,
    *,
    weight: NonNegative = 1.0,
    real: bool = True,
    critic_steps: Annotated[int, Field(ge=1, le=1000)] = 5,
    critic_width: Positive = 1.0,
    lr: Positive = 2e-4,
) -> Tapped:
    """Adversarial distillation of generators (AKDG): a second discriminator compares student and teacher images.

    Discriminator D_S distinguishes real images x from the student's, D_KD the teacher's images from the student's. All
    latents z, z' are drawn independently, so that distributions are compared, not pairs of images:

        L(D_S)  = E max(0, 1 - D_S(x))         + E max(0, 1 + D_S(G_S(z)))
        L(D_KD) = E max(0, 1 - D_KD(G_T(z')))  + E max(0, 1 + D_KD(G_S(z)))
        L(G_S)  = -E D_S(G_S(z)) - weight E D_KD(G_S(z))

    Both discriminators are updated on each batch, the generator after every ``critic_steps`` batches, with new latents.
    The teacher generates in eval mode. With weight = 0 this is an ordinary GAN, which needs no teacher. Student and
    teacher can be any two generators of images of the same shape.

    Args:
        run: the run. Labels are not read, and real images are not augmented, since the generator would imitate the
            augmentation. The recipe's optimiser, learning rate and schedule do not apply.
        weight: lambda, the weight of the term of D_KD [inferred].
        real: whether there is D_S. Without it the student learns from the teacher alone, and the data only determine
            the number of steps per epoch.
        critic_steps: updates of the discriminators per update of the generator [inferred: 5, as in SNGAN].
        critic_width: multiplies the channels of both discriminators, which have the same architecture [inferred].
        lr: the constant learning rate of all three networks, with Adam and betas (0, 0.9) [inferred: SNGAN].

    Deviations: the paper's figure and tables were available, but no equation or code. The hinge loss, spectral
    normalisation, equal discriminators and all numbers above are [inferred] from SNGAN, the paper's teacher. There is
    no moving average of the student. The record of an epoch holds both halves of each discriminator's loss: close to 0,
    it separates the images perfectly and gives the student little gradient; at 1 it does not separate them. Several
    processes draw the same latents.
    """
    student = _checked("student", run.student(), run)
    critic = partial(Critic, run.data.image_shape, critic_width)
    fake = Hinge(genuine=False)
    terms: Terms = {}
    critics: list[Learner] = []
    if real:
        real_critic = Tapped(critic(), (0.5,), (0.5,))
        critic_terms: Terms = {"real": Hinge(genuine=True), "student": fake.on(GeneratedImages(student))}
        critics.append(Learner(real_critic, None, critic_terms, name="D_S"))
        terms["real"] = Fooling(real_critic)
    if weight:
        teacher = Frozen(_checked("teacher", run.teacher(), run))
        teacher_critic = Tapped(critic(), (0.5,), (0.5,))
        critic_terms = {
            "teacher": Hinge(genuine=True).on(TeacherImages()),
            "student": fake.on(GeneratedImages(student)),
        }
        critics.append(Learner(teacher_critic, teacher, critic_terms, name="D_KD"))
        terms["teacher"] = weight * Fooling(teacher_critic)
    if not terms:
        raise TutelageError("with real=False and weight=0 the generator has no loss; change one of them")
    run.fit(
        Learner(student, None, terms),
        *critics,
        update=Alternating(critic_steps),
        data=replace(run.data, views=CropsAndFlips()),
        optimizer=partial(torch.optim.Adam, lr=lr, betas=(0.0, 0.9)),
        schedule="constant",
    )
    return student


def _checked(noun: str, model: Tapped, run: Run) -> Generator:
    """Return the model if it generates images of the run's shape; raise a ``TutelageError`` otherwise."""
    generator = cast(Generator, model)
    shape = tuple(generator.sample(1, torch.Generator()).shape[1:])
    if shape != run.data.image_shape:
        raise TutelageError(
            f"the {noun} generates images of shape {shape}, but those of {run.data.name} have {run.data.image_shape}; "
            "use a generator of that shape"
        )
    return generator
