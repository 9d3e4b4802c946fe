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
from tutelage.methods.akdg.views import GeneratedImages, TeacherImages
from tutelage.models.generator import Generator
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import Term, Weighted
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
    """Generators: a second discriminator tells the student's images from the teacher's.

    Three learners step alternately. D_S tells real images x from the student's, D_KD the teacher's images G_T(z') from
    the student's; every draw of latents is its own, so that distributions are compared and never pairs of images:
        L(D_S)  = E max(0, 1 - D_S(x))         + E max(0, 1 + D_S(G_S(z)))
        L(D_KD) = E max(0, 1 - D_KD(G_T(z')))  + E max(0, 1 + D_KD(G_S(z)))
        L(G_S)  = -E D_S(G_S(z)) - weight E D_KD(G_S(z))
    Both discriminators step on each batch, the generator on every ``critic_steps``-th after them, on z drawn anew. The
    teacher generates in eval mode. With weight = 0 it is the vanilla GAN, and needs no teacher. Student and teacher may
    be any two generators of images of one shape.

    Args:
        run: what to train. Labels are not read, and real images are shown without augmentation, which the generator
            would imitate. Of the recipe the optimiser, the learning rate and its schedule do not apply.
        weight: of D_KD's part, lambda [inferred].
        real: whether there is D_S; without it the student learns from the teacher alone and sees no real image, and
            the data tell only how many steps an epoch has.
        critic_steps: steps of the discriminators for each of the generator [inferred: SNGAN's 5].
        critic_width: multiplies the channels of both discriminators, which are alike [inferred]: see ``Critic``.
        lr: learning rate of all three, by Adam with betas (0, 0.9) [inferred: SNGAN's], constant.

    Deviations: no code or equation of the paper was at hand; its figure and tables were. The hinge form, spectral norm,
    equal discriminators and every number above are [inferred] from SNGAN, the paper's teacher. No moving average of the
    student is kept. The epoch's record has both halves of each discriminator's loss: where they near 0, it tells all
    apart and teaches little; at 1 and 1 it tells nothing. Several processes draw the same latents.
    """
    student = _checked("student", run.student(), run)
    critic = partial(Critic, run.data.image_shape, critic_width)
    fake = Hinge(genuine=False)
    terms: Terms = {}
    critics: list[Learner] = []
    if real:
        of_real = Tapped(critic(), (0.5,), (0.5,))
        told: Terms = {"real": Hinge(genuine=True), "student": fake.on(GeneratedImages(student))}
        critics.append(Learner(of_real, None, told, name="D_S"))
        terms["real"] = Fooling(of_real)
    if weight:
        teacher = Frozen(_checked("teacher", run.teacher(), run))
        of_teacher = Tapped(critic(), (0.5,), (0.5,))
        told = {"teacher": Hinge(genuine=True).on(TeacherImages()), "student": fake.on(GeneratedImages(student))}
        critics.append(Learner(of_teacher, teacher, told, name="D_KD"))
        terms["teacher"] = weight * Fooling(of_teacher)
    if not terms:
        raise TutelageError("with real=False and weight=0 nothing teaches the generator; change one of them")
    run.fit(
        Learner(student, None, terms),
        *critics,
        update=Alternating(critic_steps),
        data=replace(run.data, views=CropsAndFlips()),
        optimizer=partial(torch.optim.Adam, lr=lr, betas=(0.0, 0.9)),
        schedule="constant",
    )
    return student


def _checked(who: str, model: Tapped, run: Run) -> Generator:
    """The model, if it generates images of the run's shape."""
    generator = cast(Generator, model)
    shape = tuple(generator.sample(1, torch.Generator()).shape[1:])
    if shape != run.data.image_shape:
        raise TutelageError(
            f"the {who} generates images of shape {shape} and those of {run.data.name} have {run.data.image_shape}; "
            "give it a generator of such images"
        )
    return generator
