"""Adaptive noise injection: a stochastic student of a deterministic teacher."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from tutelage.attacks import AdversarialSamples
from tutelage.data.batch import Batch
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods._start import another_network, start_from_teacher
from tutelage.methods.ani.layer import Per, Source
from tutelage.methods.ani.surgery.ani import apply as add_noise
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import SecondView
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Tan, Elovici, Binder 2020, doi 10.1109/ICPR48806.2021.9412385",
    family="adversarial robustness",
    evidence="abstract",
)
def ani(
    run: Run,
    *,
    scale: NonNegative = 0.25,
    per: Per = "channel",
    source: Source = "running",
    learnable: bool = False,
    start: Literal["auto", "teacher", "initial"] = "auto",
    alpha: Share = 0.7,
    temperature: Positive = 4.0,
    adversarial: bool = False,
    radius: Positive = 8 / 255,
    step_size: Positive = 2 / 255,
    steps: Annotated[int, Field(ge=1)] = 7,
) -> Tapped:
    """Adaptive noise injection (ANI): a copy of the teacher with noise in its hidden layers learns to classify.

        h~ = h + s sigma(h) eps,   eps ~ N(0, 1)
        L = (1 - alpha) CE(z(x), y) + alpha T^2 KL(softmax(v(x) / T) || softmax(z(x) / T))

    h is the output of each hidden convolution or linear layer, after batch normalisation if that follows, and before
    the non-linearity. sigma is its standard deviation in the mini-batch, per channel and without a gradient, so that
    the signal-to-noise ratio is 1 / s^2 in every layer however large its weights are. z is the student, v the teacher.

    The noise stays on in eval mode: it is the defence, and it makes the network random. The test metrics have the
    accuracy of one draw with its spread and of the mean probabilities of ten draws (``one_draw_accuracy``,
    ``ten_draws_accuracy``). Attack it with the mean gradient of 20 draws (EOT), ``--attacks pgd:0.03:draws=20``: an
    attack on one draw measures the noise of the gradient.

    Args:
        run: the run. The paper fine-tunes for a short time: a tenth to a third of the teacher's epochs at a learning
            rate of 0.01 [inferred]; set --epochs and --lr.
        scale: s, the degree of stochasticity. 0.25 is the initial value of PNI (He et al. 2019, CVPR) [its code].
        per: sigma per channel or one per layer.
        source: sigma in eval mode: "batch", that of the evaluated batch, in which samples then affect each other; or
            "running", an exponential average of training [inferred].
        learnable: whether each layer's s = softplus(rho) is trained (PNI's idea).
        start: "teacher" copies the weights of the teacher, which must be the same network; "initial" does not;
            "auto" copies them where it is the same network.
        alpha: lambda [inferred]; with 0 the teacher gives its weights alone.
        temperature: T [inferred].
        adversarial: whether x of the student, but not of the teacher, is attacked by PGD as in adversarial training.
        radius, step_size: of this attack, in the pixels' range [0, 1].
        steps: of this attack.

    Evidence: the abstract (initialisation from the teacher, noise from statistics of the mini-batch, the degree of
    stochasticity). The form of the noise, its places, the loss and the schedule are [inferred], partly from the code
    of PNI, which puts noise on weights.

    Deviations: noise whose mean is the batch's mean is not implemented. Random numbers come from torch's generators,
    which checkpoints hold, and not from one of the network. With several processes, each uses the statistics of its
    own share of the batch.
    """
    student, teacher = run.student(), run.teacher()
    frozen = run.frozen(teacher)
    same = start != "initial" and start_from_teacher(run, student, teacher)
    if start == "teacher" and not same:
        raise another_network(student, teacher, "initial")
    run.note(start="teacher" if same else "initial")
    add_noise(student.module, run.example(student), scale=scale, per=per, source=source, learnable=int(learnable))
    student = student.rewrapped()
    view = AttackedBesideClean(student, radius, step_size, steps) if adversarial else None
    terms = {"ce": (1 - alpha) * CrossEntropy().on(view)}
    if alpha:
        terms["kd"] = alpha * SoftTargets(temperature).on(view)
    run.fit(Learner(student, CleanInputs(frozen) if adversarial else frozen, terms))
    return student


class AttackedBesideClean(AdversarialSamples):
    """Attacked images, with the clean ones as ``Batch.second``."""

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """See the class."""
        return replace(super().__call__(batch, student, teacher), second=batch.inputs)


class CleanInputs(SecondView):
    """A teacher that gets the clean images of ``AttackedBesideClean``; the data draw no second view for it."""

    second_view = False

    def __call__(self, batch: Batch, roles: Collection[str] = ("logits",), *parts: object) -> Outputs:
        """See the class."""
        return super().__call__(batch, roles)
