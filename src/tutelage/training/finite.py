"""Detection of NaN and infinite values: in losses, weights and teacher outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tutelage.data.loader import Batches
from tutelage.errors import NonFiniteError
from tutelage.models.outputs import Outputs
from tutelage.training.execution import Execution
from tutelage.training.learner import Learner
from tutelage.training.meter import Meter


class FiniteChecks:
    """Checks of a fit that wait for the device, so they run every ``CHECK_EVERY`` steps and after each epoch.

    Args:
        batches: those of the epochs.
        execution: where the fit runs.
        peak_lr: the peak learning rate of each learner, for the messages.
    """

    def __init__(self, batches: Batches, execution: Execution, peak_lr: Mapping[Learner, float]) -> None:
        self._batches, self._execution, self._peak_lr = batches, execution, peak_lr

    def losses(self, meters: Mapping[Learner, Meter], epoch: int) -> None:
        """Refuse loss values that are not finite, among those since the last call.

        Raises:
            NonFiniteError: names the step, the term, the samples, and the teacher if its outputs are not finite.
        """
        for learner, meter in meters.items():
            bad = meter.first_non_finite(self._execution.processes)
            if bad is None:
                continue
            indices = self._batches.indices(epoch, bad.step).tolist()
            samples = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
            last = self._execution.last_checkpoint()
            if match := self._non_finite_teacher(learner, epoch * len(self._batches) + bad.step, bad.term):
                raise NonFiniteError(
                    f"epoch {epoch + 1}, step {bad.step + 1}, on the batch of samples [{samples}]: "
                    f"{non_finite_teacher(learner.name, *match)}{last}",
                    indices,
                )
            raise NonFiniteError(
                f"epoch {epoch + 1}, step {bad.step + 1}: term {bad.term!r} of learner {learner.name!r} became "
                f"{bad.value} on the batch of samples [{samples}]; lower the learning rate "
                f"(now {self._peak_lr[learner]:g}), set a gradient clip, or look at these samples{last}",
                indices,
            )

    def weights(self, learners: Sequence[Learner], epoch: int) -> None:
        """Refuse weights that are not finite: the last step can ruin them although its loss was finite.

        Raises:
            NonFiniteError: names the learner. Such weights are never saved.
        """
        for learner in learners:
            tensors = [tensor for m in (learner.model, learner.modules) for tensor in (*m.parameters(), *m.buffers())]
            norms = torch.stack(torch._foreach_norm([tensor for tensor in tensors if tensor.is_floating_point()]))
            if not bool(torch.isfinite(norms).all()):
                raise NonFiniteError(
                    f"epoch {epoch + 1}: the weights or statistics of learner {learner.name!r} became NaN or infinite; "
                    f"lower the learning rate (now {self._peak_lr[learner]:g}) or set a clip"
                    f"{self._execution.last_checkpoint()}"
                )

    @torch.no_grad()
    def _non_finite_teacher(self, learner: Learner, step: int, term: str) -> tuple[str, float] | None:
        """Run the source again on a batch: the first role with a value that is not finite, and the value."""
        source, view = learner.source, learner.terms[term].view
        roles = {*learner.teacher_roles(), *learner.teacher_roles(view=view)}
        if source is None or source.reads or not roles:
            return None
        with self._execution.autocast():
            return first_non_finite(source(self._batches.at(step), tuple(roles), {}))


def first_non_finite(outputs: Outputs) -> tuple[str, float] | None:
    """The first role with a NaN or infinite value, and the value; a logit of -inf is allowed, a probability of 0."""
    for member in outputs.members:
        if match := first_non_finite(member):
            return match
    for role, values in {**({} if outputs.logits is None else {"logits": outputs.logits}), **outputs.features}.items():
        allowed = values.isfinite() | values.isneginf() if role == "logits" else values.isfinite()
        if not bool(allowed.all()):
            return role, float(values[~allowed][0])
    return None


def non_finite_teacher(name: str, role: str, value: float) -> str:
    """The message for a teacher whose outputs are not finite."""
    return (
        f"the teacher of learner {name!r} gives {value} for {role}; check its weights, its normalisation and, in half "
        "precision, whether its activations overflow"
    )
