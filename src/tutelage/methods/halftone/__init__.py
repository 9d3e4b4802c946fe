"""Halftoning of the input as a defence against adversarial images."""

from __future__ import annotations

import copy
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from tutelage.methods import Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.halftone.fronts.halftone import Operator, Training
from tutelage.models.surgery import front
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Huang, Liao, Huang 2020, doi 10.1109/ICPR48806.2021.9412472",
    family="adversarial robustness",
    evidence="abstract",
)
def halftone(
    run: Run,
    *,
    operator: Operator = "floyd_steinberg",
    serpentine: bool = False,
    levels: Annotated[int, Field(ge=2, le=256)] = 2,
    factor: Annotated[int, Field(ge=1, le=16)] = 1,
    training: Training = "hybrid",
    start: Literal["trained", "teacher", "initial"] = "trained",
    alpha: Share = 0.0,
    temperature: Positive = 4.0,
) -> Tapped:
    """Halftone defence: the network sees its input as dots whose density is the grey value.

        y = f(H(x)),   L = CE(f(x~), y),   x~ = H(x) for every second image of a batch, x for the others

    H halftones each channel by error diffusion: in scan order o = 1 if v >= 0.5 else 0, and the error v - o is added
    to the next pixels (7/16 right, 3/16 below left, 5/16 below, 1/16 below right). It is a layer before the network's
    first, so that it runs after augmentation, remains after deployment and is saved with the network.

    1. The network is trained on intensity images.
    2. It is trained further on intensity and halftone images ("hybrid").
    3. It is deployed with H before it.

    **It does not withstand an attack that knows of it.** H has a gradient of 0, which misleads attacks; the layer
    declares surrogate gradients, so that all attacks of this library get past it (see the results).

    Args:
        run: the run. Both fits use its recipe.
        operator: H: "floyd_steinberg" [inferred; the abstract says "halftoning"]; "jarvis", error diffusion to twelve
            neighbours; "bayer", an ordered dither; "random", random thresholds (a random network: see ``draws`` of
            attacks).
        serpentine: whether odd rows are scanned from right to left; slower.
        levels: the number of values of a dot.
        factor: how often each pixel is repeated along both axes before H, since density needs pixels; the network gets
            larger images and costs more.
        training: the images of step 2: "hybrid", "halftone" (dots alone) or "plain" (intensities alone).
        start: of step 2: "trained" (step 1), "teacher" (the weights of a teacher that is the same network) or "initial"
            (the student's initial weights, for example of ``--init``).
        alpha: the weight of the soft targets of a teacher, which gets intensity images, in step 2:
            L = (1 - alpha) CE + alpha T^2 KL(teacher || student); 0 needs no teacher. An addition of ours.
        temperature: T.

    Evidence: the abstract. The operator, channels halftoned separately, stored (gamma) values, lost errors at the edge,
    one network for both kinds of images and its start from a trained one are [inferred].

    Deviations: the paper doubles no pixels or does so without saying; ``factor=2`` is the guess for images up to 64
    pixels, and the default is 1, which any network takes. A batch holds half of each kind of image rather than both
    versions of each. The paper's threat model is unknown; its figures are plausible only for an attack that does not
    know of H.
    """
    student = run.student()
    source, terms = run.frozen(*run.teachers()) if alpha else None, labels_and_soft_targets(alpha, temperature)
    if start == "teacher" and not start_from_teacher(run, student, run.teacher()):
        raise another_network(student, run.teacher(), "trained")
    add_halftone = partial(
        halftoned, run, operator=operator, serpentine=serpentine, levels=levels, factor=factor, training=training
    )
    run.check(Learner(add_halftone(copy.deepcopy(student)), source, terms))
    if start == "trained":
        run.fit(Learner(student, None, {"ce": CrossEntropy()}))
    student = add_halftone(student)
    run.fit(Learner(student, source, terms))
    return student


def halftoned(run: Run, student: Tapped, *, serpentine: bool = False, **settings: str | int) -> Tapped:
    """The student with a halftone before its first layer; ``settings`` as in ``fronts.halftone.build``."""
    example = run.example(student)
    mean, std = (part.flatten().expand(example.shape[1]).tolist() for part in (student.mean, student.std))
    front.apply(student.module, example, kind="halftone", mean=mean, std=std, serpentine=int(serpentine), **settings)
    return student.rewrapped()
