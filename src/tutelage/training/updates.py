"""Update rules, and the operations of a training step that they use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tutelage.data.batch import Batch
from tutelage.errors import unknown
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms.term import View
from tutelage.training.learner import ForwardPass, Learner


class Step:
    """One training step of a cohort, for an update rule.

    Attributes:
        batch: the batch of all learners.
        number: the number of the step in this fit, from 0.
        progress: the completed share of the fit, in [0, 1).
        learners: the cohort, in order.
        lr: each learner's current learning rate; of several parameter groups, that of the first.
        outputs: each model's latest outputs for this batch, which ``Peers`` reads.
        term_values, trained_outputs: each learner's term values and outputs in the pass of its update, for the history.
    """

    def __init__(
        self,
        batch: Batch,
        number: int,
        progress: float,
        learners: Sequence[Learner],
        *,
        streams: Mapping[str, Callable[[int], Batch]],
        roles: Mapping[Learner, tuple[str, ...]],
        apply: Callable[[Learner, Tensor], None],
        autocast: Callable[[], AbstractContextManager[object]],
        lr: Mapping[Learner, float] = MappingProxyType({}),
    ) -> None:
        self.batch, self.number, self.progress, self.learners, self.lr = batch, number, progress, learners, lr
        self.outputs: dict[nn.Module, Outputs] = {}
        self.term_values: dict[Learner, Tensor] = {}
        self.trained_outputs: dict[Learner, Outputs] = {}
        self._teacher_outputs: dict[Learner, Outputs | None] = {}
        self._streams, self._roles, self._apply, self._autocast = streams, roles, apply, autocast

    def draw(self, stream: str) -> Batch:
        """Return this step's batch of a further stream (``streams=`` of the fit)."""
        if stream not in self._streams:
            raise unknown("stream", stream, self._streams)
        return self._streams[stream](self.number)

    def forward(self, learner: Learner, *, eager: bool = False) -> Outputs:
        """Run the learner's model on the batch, with gradients, and store and return its outputs.

        If no term reads outputs for the current batch, the model is not run. ``eager`` is for second derivatives: it
        disables ``torch.compile`` and fused attention, which have none, and autocast, which rounds them.

        A source that reads no student runs first: a teacher's pass between the student's forward and backward passes
        would evict from the processor's caches what the backward pass reads.
        """
        if learner.source is not None and not learner.source.reads:
            self._teacher_outputs[learner] = self.teacher_outputs(learner)
        if roles := self._roles[learner]:
            with sdpa_kernel(SDPBackend.MATH) if eager else self._autocast():
                outputs = learner.model.tap(self.batch.inputs, roles, eager=eager)
        else:
            outputs = Outputs(None)
        self.outputs[learner.model] = outputs
        self.trained_outputs[learner] = outputs
        return outputs

    def _view_pass(self, learner: Learner, view: View, student: Outputs, teacher: Outputs | None) -> ForwardPass:
        """Make a view's batch, and run the learner's model, with gradients, and its source on it."""
        with self._autocast():
            batch = replace(view(self.batch, student.detach(), teacher), key=None)
            with nullcontext() if view.updates_statistics else frozen_running_statistics(learner.model):
                outputs = learner.model.tap(batch.inputs, learner.roles(view))
        return ForwardPass(batch, outputs, self.teacher_outputs(learner, batch, view))

    def refresh(self, learner: Learner) -> None:
        """Run an updated model again for its peers: in train mode, without gradients or new running statistics."""
        with torch.no_grad(), frozen_running_statistics(learner.model), self._autocast():
            self.outputs[learner.model] = learner.model.tap(self.batch.inputs, self._roles[learner])

    def teacher_outputs(self, learner: Learner, batch: Batch | None = None, view: View | None = None) -> Outputs | None:
        """The teacher's outputs for the current batch, or for a view's, if a term with non-zero weight reads them."""
        roles = learner.teacher_roles(self.progress, view)
        if learner.source is None or not roles:
            return None
        with self._autocast():
            if batch is None:
                return learner.source(self.batch, roles, self.outputs)
            return learner.source(batch, roles, {})  # a cohort has outputs for the current batch only

    def loss(self, learner: Learner) -> Tensor:
        """Return the learner's loss on its model's latest outputs, computed in float32."""
        student = self.outputs[learner.model]
        teacher = (
            self._teacher_outputs.pop(learner) if learner in self._teacher_outputs else self.teacher_outputs(learner)
        )
        passes: dict[View | None, ForwardPass] = {None: ForwardPass(self.batch, student, teacher)}
        for view in learner.views(self.progress):
            passes[view] = self._view_pass(learner, view, student, teacher)
        total, self.term_values[learner] = learner.loss(passes, self.progress)
        return total

    def update(self, learner: Learner, loss: Tensor) -> None:
        """Backward pass, gradient averaging and clipping, optimizer step, and the source's ``after_step``."""
        self._apply(learner, loss)


class UpdateRule(Protocol):
    """A function that does one step. If it has ``state_dict`` and ``load_state_dict``, checkpoints save its state."""

    def __call__(self, step: Step) -> None:
        """Do the step."""
        ...


def together(step: Step) -> None:
    """Update all learners at once: every forward pass precedes the first update."""
    for learner in step.learners:
        step.forward(learner)
    losses = [step.loss(learner) for learner in step.learners]
    for learner, loss in zip(step.learners, losses, strict=True):
        step.update(learner, loss)


def in_turn(step: Step) -> None:
    """Update one learner after another; each sees the outputs of earlier ones *after* their update on this batch."""
    for learner in step.learners:
        step.forward(learner)
    for number, learner in enumerate(step.learners, 1):
        step.update(learner, step.loss(learner))
        if number < len(step.learners):
            step.refresh(learner)


class Alternating:
    """Update all learners but the first on each batch, and on each ``every``-th batch then the first, as in a GAN.

    On the other batches the first learner is not run. The rule has no state: the step's number determines the turn.

    Args:
        every: the number of batches between updates of the first learner.
        stream: the stream (``streams=`` of the fit) from which the first learner gets its batches; ``None`` for the
            batches of the others.
    """

    def __init__(self, every: int, stream: str | None = None) -> None:
        self.every, self.stream = every, stream

    def __call__(self, step: Step) -> None:
        """Do the step: forward pass, loss and update of each learner before those of the next."""
        first, *others = step.learners
        for learner in [*others, first] if (step.number + 1) % self.every == 0 else others:
            if learner is first and self.stream is not None:
                step.batch = step.draw(self.stream)
            step.forward(learner)
            step.update(learner, step.loss(learner))


@contextmanager
def frozen_running_statistics(model: Tapped) -> Iterator[None]:
    """A context in which batch normalization in train mode does not update its running statistics."""
    tracking = [m for m in model.modules() if m.training and getattr(m, "track_running_stats", False)]
    for module in tracking:
        setattr(module, "track_running_stats", False)  # noqa: B010 - batch norms of any dimension
    try:
        yield
    finally:
        for module in tracking:
            setattr(module, "track_running_stats", True)  # noqa: B010
