"""Distillation of a spiking network into a smaller spiking network."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from tutelage.data.batch import Batch, hard_labels
from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.metrics import accuracy
from tutelage.methods import NonNegative, Positive, Share, method
from tutelage.methods.spikes.networks.snn import SpikingNetwork
from tutelage.methods.spikes.neurons import rate_code
from tutelage.methods.spikes.terms import HiddenWindowMatching, WindowMatching, check_window
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, SoftTargets, Term, View, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(
    paper="Kushawaha, Kumar, Banerjee, Velmurugan 2020, arXiv 2005.00288",
    family="spiking networks",
    evidence="abstract",
)
def spikes(
    run: Run,
    *,
    window_weight: NonNegative = 0.5,
    width: Annotated[int, Field(ge=1)] | None = None,
    stride: Annotated[int, Field(ge=1)] | None = None,
    alpha: Share = 0.0,
    temperature: Positive = 2.0,
    hidden_weight: NonNegative = 0.0,
    assistants: tuple[str, ...] = (),
) -> Tapped:
    """Distilling spikes: a small spiking network learns the spike trains of a large one.

        L = (1 - alpha) CE(n^S, y) + alpha tau^2 KL(softmax(n^T / tau) || softmax(n^S / tau))
            + window_weight D + hidden_weight D_hidden
        D = mean over windows k and classes c of (sum_{t in window k} S^S_tc - S^T_tc)^2

    S (B, T, C) are the output spikes, 0 or 1, and n = sum_t S_t the counts, which are the logits. A window has w steps,
    and one begins every d steps: w = 1 matches single spikes, w = T counts. D_hidden is the mean over windows and
    neurons of (A r^S - r^T)^2, with r the spikes of the last hidden layer divided by w, and A a linear layer that
    exists only during training. The mean over the batch is taken last.

    Teacher and student are networks of the family ``snn``, such as ``snn200`` and ``snn16``, with the same T, and need
    the extra ``snn``; ``--method plain`` trains the teacher. In each step both get the same spike trains, drawn from
    the pixels. The test metrics have the accuracy over five draws, with its spread and as a function of time, and the
    number of spikes of an image.

    Args:
        run: the run. Its optimizer is [inferred]: Adam, --optimizer Adam --lr 0.002 --weight-decay 0.
        window_weight: of D [inferred]. 0 for none.
        width: w; by default T / 4, rounded down [inferred].
        stride: d, at most w; by default w / 2, rounded down [inferred].
        alpha: the share of the loss on rates, lambda; 0.7 with ``window_weight=0`` is that loss alone [inferred].
        temperature: tau [inferred].
        hidden_weight: of D_hidden [inferred].
        assistants: networks that are trained one after another, each from the one before, the first from the teacher,
            and the student from the last. The parameters of one are about the geometric mean of the teacher's and the
            student's [inferred]: snn40 between snn200 and snn8. Each has the epochs of the run. Without any the student
            learns from the teacher directly. The notes have their accuracy on the held-out split.

    Evidence: the abstract (spiking teacher and student, spike activity as the target, an intermediate network). That
    the windows slide is [memory]. Neurons, encoding, all forms of the losses and their weights are [inferred].

    Deviations: the last window may be shorter, so that each step is in one. The paper's trainer of spiking networks is
    unknown; here it is backpropagation through time with a surrogate gradient.
    """
    student = run.student()
    steps = _steps("student", student)
    _check_steps(run.teacher(), "teacher", steps)
    chain = [run.network(name, number) for number, name in enumerate(assistants, 1)]
    for name, assistant in zip(assistants, chain, strict=True):
        _check_steps(assistant, f"assistant {name}", steps)
    width = max(1, steps // 4) if width is None else width
    stride = max(1, width // 2) if stride is None else stride
    check_window(steps, width, stride)
    teacher, notes = run.teacher(), []
    for number, network in enumerate([*chain, student]):
        view = EncodedImages(steps)
        terms: dict[str, Term | Weighted] = {"ce": (1 - alpha) * CrossEntropy().on(view)}
        if alpha:
            terms["kd"] = alpha * SoftTargets(temperature).on(view)
        if window_weight:
            terms["window"] = window_weight * WindowMatching(width, stride).on(view)
        if hidden_weight:
            terms["hidden"] = hidden_weight * HiddenWindowMatching(width, stride).on(view)
        is_last = network is student
        name = "student" if is_last else f"assistant{number + 1}"
        run.fit(Learner(network, run.frozen(teacher), terms, name=name))
        if not is_last:
            notes.append({"network": assistants[number], "accuracy": _held_out_accuracy(run, network)})
        teacher = network
    if notes:
        run.note(assistants=notes)
    return student


class EncodedImages(View):
    """The images of the batch as spike trains (B, T, C, H, W), one draw for student and teacher.

    Args:
        steps: T.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        """See the class."""
        return replace(batch, inputs=rate_code(batch.inputs, self.steps))


def _steps(who: str, model: Tapped) -> int:
    """T of a spiking network."""
    if not isinstance(model.module, SpikingNetwork):
        raise TutelageError(
            f"the method spikes needs spiking networks, and the {who}, {type(model.module).__name__}, is none; choose "
            "one of the family snn, for example snn16"
        )
    return model.module.steps


def _check_steps(model: Tapped, who: str, steps: int) -> None:
    if (other := _steps(who, model)) != steps:
        raise TutelageError(
            f"the {who} has {other} time steps and the student {steps}; give both the same number, as snn200-{steps} "
            "has"
        )


def _held_out_accuracy(run: Run, model: Tapped) -> float | None:
    held_out = run.data.validation
    if held_out is None:
        return None
    return json_number(accuracy(run.predict(model, held_out), hard_labels(held_out.labels)))
