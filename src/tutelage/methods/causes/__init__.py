"""Networks in which one suspected cause of adversarial examples is switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from tutelage.methods import NonNegative, method
from tutelage.methods.causes.outputs import Background, OneAgainstRest, SquaredDistance, UniformNoise, WithBackground
from tutelage.methods.causes.surgery import unit_norm as normalisation
from tutelage.models.surgery import abstain
from tutelage.models.tapped import Tapped
from tutelage.terms.cross_entropy import CrossEntropy
from tutelage.terms.term import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Terms = dict[str, Term | Weighted]

TERMS: Mapping[str, Callable[[float], Terms]] = MappingProxyType(
    {
        "softmax": lambda _: {"ce": CrossEntropy()},
        "sigmoid": lambda _: {"bce": OneAgainstRest()},
        "squares": lambda _: {"mse": SquaredDistance()},
        "background": lambda weight: {"ce": WithBackground(), "noise": weight * Background().on(UniformNoise())},
    }
)
"""The terms of each kind of outputs, by the weight of the background."""


@method(
    paper="Li, Fan, Ganz, Yezzi, Barnaghi 2020, arXiv 2010.09633",
    family="adversarial robustness",
    evidence="abstract",
)
def causes(
    run: Run,
    *,
    outputs: Literal["softmax", "sigmoid", "squares", "background"] = "sigmoid",
    unit_norm: Literal["none", "input", "feature", "all"] = "none",
    background: NonNegative = 1.0,
) -> Tapped:
    """Causes of adversarial examples: train a network without one of two suspected causes.

    The one-sum constraint: softmax probabilities sum to 1, so that an input far from all data must belong to a class.

        softmax      CE(z, y)
        sigmoid      -sum_c t_c log s(z_c) + (1 - t_c) log(1 - s(z_c)),   t = onehot(y)
        squares      ||z - t||^2
        background   CE((z, a), y) + background CE((z', a'), C + 1),   z', a' of uniform noise

    The confidence is the largest softmax probability, sigmoid, output clipped to [0, 1], or probability of a class that
    is not the background. The prediction is the largest output z in all cases.

    Linearity: the logits of a ReLU network grow linearly along a ray, since f(a x) = a f(x) without biases.

        input        the first layer reads x sqrt(D) / ||x||, so that f(a x) = f(x)
        all          so does every linear and convolutional layer
        feature      z_c = 16 cos(w_c, h)

    These are controls of an experiment, and no defence: the paper's finding is that the geometry of the classes is the
    more direct cause, while such statistical factors magnify the effect, above all the confidence. To compare two
    networks, attack the logits (``pgd:0.2:loss=margin``), since sigmoid and softmax saturate. Reference data of known
    geometry (``spheres``, ``gaussians``, ``subspace``, ``blocks``) are in ``tutelage.methods.causes.geometry``, class
    densities in ``tutelage.methods.causes.densities``; the method ``pnn`` trains the paper's MLP-PNN. No network is
    trained adversarially.

    Args:
        run: the run; a teacher is not used.
        outputs: the loss. ``background`` adds the output ``abstain`` to the network.
        unit_norm: what is normalised to a constant norm.
        background: the weight of the noise.

    Evidence: the abstract, which names the causes, L2 normalisation and replaced losses; their forms are [inferred].

    Deviations: the norm of a normalised input is sqrt(D) rather than 1, so that initial weights suit it.
    """
    student = run.student()
    if unit_norm != "none":
        normalisation.apply(student.module, run.example(student), where=unit_norm)
    if outputs == "background":
        abstain.apply(student.module, run.example(student))
    student = student.rewrapped()
    run.fit(Learner(student, None, TERMS[outputs](background)))
    return student
