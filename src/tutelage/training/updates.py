"""How a cohort steps: the update rules, and what a rule can do within one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
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
    """One training step of a cohort, as an update rule sees it.

    Attributes:
        batch: what all learners are shown.
        number: how many steps of this fit came before.
        progress: how far the run is, in [0, 1).
        learners: the cohort, in order.
        outputs: what each model last gave for this batch; the cohort that ``Peers`` reads.
        term_values, trained_outputs: each learner's terms and outputs in the pass that it learnt from, for the history.
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
    ) -> None:
        self.batch, self.number, self.progress, self.learners = batch, number, progress, learners
        self.outputs: dict[nn.Module, Outputs] = {}
        self.term_values: dict[Learner, Tensor] = {}
        self.trained_outputs: dict[Learner, Outputs] = {}
        self._taught: dict[Learner, Outputs | None] = {}
        self._streams, self._roles, self._apply, self._autocast = streams, roles, apply, autocast

    def draw(self, stream: str) -> Batch:
        """This step's batch of a further stream (``streams=`` of the fit)."""
        if stream not in self._streams:
            raise unknown("stream", stream, self._streams)
        return self._streams[stream](self.number)

    def forward(self, learner: Learner, *, eager: bool = False) -> Outputs:
        """Run the learner's model on the batch, with gradients, and keep what it gave.

        Nothing is run where no term reads the answer to the batch at hand. ``eager`` is for second derivatives: it does
        without ``torch.compile`` and fused attention, which have none, and without autocast, which rounds them.

        A source that answers for itself is asked before: a teacher's pass between the student's forward and backward
        would drive what backward reads out of the processor's caches.
        """
        if learner.source is not None and not learner.source.reads:
            self._taught[learner] = self.teacher_outputs(learner)
        if roles := self._roles[learner]:
            with sdpa_kernel(SDPBackend.MATH) if eager else self._autocast():
                outputs = learner.model.tap(self.batch.inputs, roles, eager=eager)
        else:
            outputs = Outputs(None)
        self.outputs[learner.model] = outputs
        self.trained_outputs[learner] = outputs
        return outputs

    def _shown(self, learner: Learner, view: View, student: Outputs, teacher: Outputs | None) -> ForwardPass:
        """Make a view's batch, and show it to the learner's model, with gradients, and to its source."""
        with self._autocast():
            batch = replace(view(self.batch, student.detach(), teacher), key=None)
            with nullcontext() if view.updates_statistics else frozen_running_statistics(learner.model):
                answer = learner.model.tap(batch.inputs, learner.roles(view))
        return ForwardPass(batch, answer, self.teacher_outputs(learner, batch, view))

    def refresh(self, learner: Learner) -> None:
        """Run an updated model once more, for its peers: train mode, no gradients, running statistics untouched."""
        with torch.no_grad(), frozen_running_statistics(learner.model), self._autocast():
            self.outputs[learner.model] = learner.model.tap(self.batch.inputs, self._roles[learner])

    def teacher_outputs(self, learner: Learner, batch: Batch | None = None, view: View | None = None) -> Outputs | None:
        """What the learner's source answers to the batch at hand, or to a view's, if any of the terms asks now."""
        roles = learner.teacher_roles(self.progress, view)
        if learner.source is None or not roles:
            return None
        with self._autocast():
            if batch is None:
                return learner.source(self.batch, roles, self.outputs)
            return learner.source(batch, roles, {})  # a cohort has answered the batch at hand alone

    def loss(self, learner: Learner) -> Tensor:
        """The learner's loss on what its model last gave with gradients, computed in full precision."""
        student = self.outputs[learner.model]
        teacher = self._taught.pop(learner) if learner in self._taught else self.teacher_outputs(learner)
        passes: dict[View | None, ForwardPass] = {None: ForwardPass(self.batch, student, teacher)}
        for view in learner.views(self.progress):
            passes[view] = self._shown(learner, view, student, teacher)
        total, self.term_values[learner] = learner.loss(passes, self.progress)
        return total

    def update(self, learner: Learner, loss: Tensor) -> None:
        """Backward, share gradients among processes, clip, step, and let the source react."""
        self._apply(learner, loss)


class UpdateRule(Protocol):
    """What happens in one step. A rule with ``state_dict`` and ``load_state_dict`` is kept in checkpoints."""

    def __call__(self, step: Step) -> None:
        """Do the step."""
        ...


def together(step: Step) -> None:
    """All learners at once: every forward before any update, so that each sees the others as they were."""
    for learner in step.learners:
        step.forward(learner)
    losses = [step.loss(learner) for learner in step.learners]
    for learner, loss in zip(step.learners, losses, strict=True):
        step.update(learner, loss)


def in_turn(step: Step) -> None:
    """One learner after another, each taught by what the earlier ones give *after* their update on this batch."""
    for learner in step.learners:
        step.forward(learner)
    for number, learner in enumerate(step.learners, 1):
        step.update(learner, step.loss(learner))
        if number < len(step.learners):
            step.refresh(learner)


class Alternating:
    """Adversaries: all learners but the first step on each batch, and on each ``every``-th the first does after them.

    The first learner is not run on the other batches. Whose turn it is the number of the step tells: the rule has no
    state.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, step: Step) -> None:
        """Each learner's forward, loss and update before the next one's."""
        first, *others = step.learners
        for learner in [*others, first] if (step.number + 1) % self.every == 0 else others:
            step.forward(learner)
            step.update(learner, step.loss(learner))


@contextmanager
def frozen_running_statistics(model: Tapped) -> Iterator[None]:
    """Within it, batch normalisation in train mode uses the batch and leaves its running statistics alone."""
    tracking = [m for m in model.modules() if m.training and getattr(m, "track_running_stats", False)]
    for module in tracking:
        setattr(module, "track_running_stats", False)  # noqa: B010 - batch norms of any dimension
    try:
        yield
    finally:
        for module in tracking:
            setattr(module, "track_running_stats", True)  # noqa: B010
