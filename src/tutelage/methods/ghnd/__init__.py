"""A detector split between a device and a server by a bottleneck that head network distillation trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutelage.data.split import Split
from tutelage.data.targets import Boxes
from tutelage.errors import TutelageError
from tutelage.evaluation.cost import flops
from tutelage.methods import Positive, Share, method
from tutelage.methods._start import start_from_teacher
from tutelage.methods.ghnd.codec import Bits
from tutelage.methods.ghnd.delay import jpeg_bytes
from tutelage.methods.ghnd.neural_filter import NeuralFilter
from tutelage.methods.ghnd.objects import ObjectCrossEntropy, ObjectPresence, set_threshold
from tutelage.methods.ghnd.split import CODE, SplitNetwork
from tutelage.methods.ghnd.surgery import bottleneck, neural_filter
from tutelage.methods.ghnd.surgery.neural_filter import ROLE
from tutelage.models.modes import eval_mode
from tutelage.models.tapped import Tapped
from tutelage.models.tracing import trace_layers
from tutelage.terms import Hint, Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run

Loss = Literal["ghnd", "hnd", "labels"]
MEASURED = 32  # images whose JPEG sizes are averaged


@method(paper="Matsubara, Levorato 2020, ICPR, arXiv 2007.15818", family="split computing", task=None, evidence="code")
def ghnd(
    run: Run,
    *,
    loss: Loss = "ghnd",
    channels: Annotated[int, Field(ge=1, le=1024)] = 3,
    stage: Annotated[int, Field(ge=1, le=9)] = 1,
    bits: Bits = 8,
    train_stem: bool = True,
    lr: Positive = 1e-3,
    filter_recall: Share | None = None,
    filter_lr: Positive = 1e-3,
) -> Tapped:
    """GHND (split computing): a stage becomes a bottleneck, and later, frozen stages help to train it.

        L = sum_{k >= stage} ||T_k - S_k||^2

    The student is a copy of the teacher whose first stage is replaced by an encoder of few output channels and a
    decoder, so that a device can compute stem and encoder, and a server the rest; only the encoder's output is sent.
    T_k and S_k, (B, C, h, w), are the outputs of stage k. The later stages of the student are the teacher's and frozen;
    the gradient flows through them. The distances are summed over a map and averaged over the batch.

    In evaluation, the encoder's output is rounded to 8 bits by the range of each image. ``result.json`` has the bytes
    of a message, its shape, the operations of both halves, and the mean size of the images as JPEG files;
    ``tutelage.methods.ghnd.delay`` computes delays from them, and ``tutelage.methods.ghnd.split.SplitNetwork`` runs
    both halves and returns the messages.

    With ``filter_recall`` a second fit, of as many epochs, trains a neural filter on the output of the stem: whether an
    image has an object, by cross-entropy. Everything else is frozen, and the encoder does not run. The epoch with the
    best area under the ROC curve on the held-out split is used, and the largest threshold with this recall there. Below
    it nothing is sent and the prediction is empty.

    Args:
        run: the run. The teacher is a detector of centre points, or a classifier; the student must be the same network.
        loss: "ghnd" as above; "hnd" for the replaced stage alone, k = stage; "labels" for the label loss with the same
            trained layers, a control.
        channels: of the encoder's output, B: 3, 6, 9 or 12 in the paper.
        stage: which stage is replaced, the first in the paper. It must keep the resolution.
        bits: 8; 16 for half precision and 32 for none, as controls.
        train_stem: whether the layers before the bottleneck are trained too, except for their normalisations, as in
            [official code].
        lr: the peak learning rate of Adam. It rises in the first epoch and is divided by 10 after a quarter and after
            three quarters of the epochs: 5 and 15 of 20 in [official code].
        filter_recall: the share of images with objects that must pass the filter; ``None`` for no filter.
        filter_lr: the learning rate of the filter's SGD, with momentum 0.9 and weight decay 1e-4, divided by 10 after
            half of the epochs and after five sixths [official code].

    Raises:
        TutelageError: the student is another network than the teacher, the stage changes the resolution or is bypassed
            by another path, or a filter has no held-out split or no boxes.

    Evidence: the authors' code and the maintained re-run in torchdistill. [official code] has R-CNN detectors; the
    bottleneck of other widths, and the filter of other widths and small images, are [inferred].

    Deviations: the authors sum over the batch as well; Adam does not depend on that factor, and here the loss does not
    grow with the batch size. Their normalisations have buffers only, ours are frozen, in eval mode. Their quantiser
    cuts values where the range does not contain 0, truncates the zero point, and divides by zero for constant tensors;
    here the range is widened to contain 0. Images without annotations are not left out. The student has the weights of
    the last epoch; the best epoch is under ``selected`` in ``result.json``, unless a filter is trained afterwards. In
    the authors' second fit, the statistics of the bottleneck's normalisations still change; here they do not.
    """
    student, teacher = run.student(), run.teacher()
    if not start_from_teacher(run, student, teacher):
        raise TutelageError(
            f"ghnd copies the teacher, and the student, {type(student.module).__name__}, is another network than the "
            f"teacher, {type(teacher.module).__name__}, or takes images of another size; use the teacher's"
        )
    held_out = run.data.validation
    has_boxes = isinstance(run.data.targets, Boxes)
    if filter_recall is not None and (not has_boxes or held_out is None):
        reason = "a held-out split (--validation 0.1)" if has_boxes else "boxes"
        raise TutelageError(
            f"filter_recall={filter_recall:g} needs {reason}, and {run.data.name} has none; leave it out"
        )
    run.trace(student)
    stages = [role for role in student.stages if int(role.removeprefix("stage")) >= stage]
    if f"stage{stage}" not in stages:
        raise TutelageError(
            f"{type(student.module).__name__} has no stage{stage} to replace; it has "
            f"{', '.join(student.stages) or 'no stages'}"
        )
    layer = student.taps[f"stage{stage}"].layer
    head = _layers_before(student, layer, run)
    bottleneck.apply(student.module, run.example(student), layer=layer, channels=channels, bits=bits)
    student = student.rewrapped().to(student.mean.device)
    _check_cut(run, student)

    def trained(name: str) -> bool:
        module = name.rpartition(".")[0]
        in_stem = train_stem and module in head and not isinstance(student.module.get_submodule(module), _BatchNorm)
        return name.startswith(f"{layer}.") or in_stem

    matched = {"ghnd": stages, "hnd": stages[:1], "labels": []}[loss]
    terms: dict[str, Term | Weighted] = {role: 2.0 * Hint(role, role, "paper", "never") for role in matched}
    run.fit(
        Learner(
            student,
            run.frozen(teacher) if matched else None,
            terms or run.label_terms(),
            trainable=trained,
            evaluated=True,
        ),
        **_schedule("Adam", lr, (0.25, 0.75), weight_decay=0.0, warmup=min(1.0, run.epochs / 2)),
    )
    run.note(**_measured(run, student, teacher))
    if filter_recall is None or held_out is None:
        return student
    return _with_filter(run, student, layer, held_out, filter_recall, filter_lr)


def _schedule(optimizer: str, lr: float, milestones: tuple[float, ...], **changes: Any) -> dict[str, Any]:
    """The changes of the run's recipe for a fit: the optimizer, and a rate divided by 10 at the milestones."""
    return {"optimizer": optimizer, "lr": lr, "schedule": "step", "milestones": milestones, "gamma": 0.1, **changes}


def _layers_before(model: Tapped, layer: str, run: Run) -> set[str]:
    """The names of the modules that return before a layer begins."""
    inputs = run.task.samples(model, run.data, run.data.train, 2)
    names = [traced.name for traced in trace_layers(model.module, model.normalised(inputs))]
    first = next(number for number, name in enumerate(names) if f"{name}.".startswith(f"{layer}."))
    return set(names[:first])


def _check_cut(run: Run, student: Tapped) -> None:
    """Refuse a network that a message does not carry: one whose later layers read more than the replaced stage.

    Raises:
        TutelageError: the outputs of the two halves differ from those of the whole network.
    """
    images = run.task.samples(student, run.data, run.data.train, 2)
    halves = SplitNetwork(student)
    codec = halves.bottleneck.codec
    bits, codec.bits = codec.bits, 32  # rounding to few bits would enlarge differences in the last digit
    with eval_mode(student), torch.no_grad():
        whole = student(images)
        received = halves.receive(halves.send(images), images)
    codec.bits = bits
    if not torch.allclose(received, whole, rtol=1e-3, atol=1e-3):
        raise TutelageError(
            f"{type(student.module).__name__} cannot be cut at {halves.layer!r}: a path leads around this layer; "
            "choose another stage"
        )


class _Head(nn.Module):
    """The part of a network that runs on the device."""

    def __init__(self, model: Tapped, role: str) -> None:
        super().__init__()
        self.model, self.role = model, role

    def forward(self, images: Tensor) -> Tensor:
        return self.model.tap(images, (self.role,))[self.role]


def _measured(run: Run, student: Tapped, teacher: Tapped) -> dict[str, Any]:
    """Bytes of a message and its shape, operations of both halves and of the teacher, and bytes of a JPEG file."""
    images = run.task.samples(student, run.data, run.data.train, 1)
    halves = SplitNetwork(student)
    (message,) = halves.send(images)
    with eval_mode(halves.model), torch.no_grad():
        code = halves.model.tap(images, (CODE,))[CODE]
    head, whole = flops(_Head(halves.model, CODE), images), flops(student, images)
    count = min(MEASURED, len(run.data.train))
    return {
        "payload_bytes": len(message or b""),
        "payload_shape": list(code.shape[1:]),
        "jpeg_bytes": jpeg_bytes(run.data.train, [n * len(run.data.train) // count for n in range(count)]),
        "flops": {"head": head, "tail": whole - head, "teacher": flops(teacher.to(images.device), images)},
    }


def _with_filter(run: Run, student: Tapped, layer: str, held_out: Split, recall: float, lr: float) -> Tapped:
    """Train a neural filter in front of the encoder, and choose its threshold."""
    neural_filter.apply(student.module, run.example(student), layer=layer)
    student = student.rewrapped().to(student.mean.device)
    module = cast(NeuralFilter, student.module.get_submodule(f"{layer}.filter"))
    fitted = run.fit(
        Learner(
            student, None, {"filter": ObjectCrossEntropy()}, trainable=lambda name: name.startswith(f"{layer}.filter.")
        ),
        task=ObjectPresence(),
        **_schedule("SGD", lr, (0.5, 5 / 6), weight_decay=1e-4, momentum=0.9, nesterov=False),
    )
    for best in fitted.selected.values():
        student.module.load_state_dict(dict(best.state))
    device = student.mean.device
    images = run.task.samples(student, run.data, run.data.train, 1)
    run.note(
        filter=set_threshold(student, module, held_out, recall, device) | {"flops": flops(_Head(student, ROLE), images)}
    )
    return student.rewrapped().to(device)  # another object: the selected epoch is that of the filter
