"""Meta-learning training procedure: steps that also lower the loss of another batch after a look-ahead step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tutelage.data.batch import Batch
from tutelage.methods import NonNegative, method
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.training.learner import ForwardPass, Learner
from tutelage.training.meta import check_single_process, parameter_gradients, virtual_step
from tutelage.training.run import Run
from tutelage.training.updates import Step

Mode = Literal["full", "first_order", "maml", "taylor"]


@method(paper="Deng, Zhang 2020, arXiv 2002.12455", family="regularisation", task=None, evidence="abstract")
def mltp(run: Run, *, alpha: NonNegative | None = None, beta: NonNegative = 1.0, mode: Mode = "full") -> Tapped:
    """MLTP (meta-learning training procedure): lower the loss of another batch after a look-ahead step too.

        J(theta) = L_i(theta) + beta L_j(theta - alpha dL_i/dtheta)
                 ~ L_i + beta L_j - alpha beta <dL_i/dtheta, dL_j/dtheta>     to first order in alpha

    L_i and L_j are the task's loss on the labels of the current batch and of another batch. Each step of the optimizer
    uses the exact gradient of J, with the second derivatives of L_i. The inner product rewards batches whose gradients
    agree. No parameters are added, and the trained network is an ordinary one.

    Args:
        run: the run; a teacher is not used.
        alpha: the learning rate of the look-ahead step, which is plain SGD; ``None`` is the current learning rate,
            which falls with the schedule [inferred]. With 0, J is the loss of both batches, L_i + beta L_j, and a step
            is one of ordinary training on two batches.
        beta: the weight of the second loss [inferred].
        mode: "full" is J; "first_order" treats dL_i/dtheta as a constant, which leaves out the second derivatives and
            with them the inner product; "maml" leaves out L_i(theta); "taylor" is the second line.

    The second batch is drawn independently from the training split, in another order, so a few samples can be in both.
    An epoch therefore processes each sample twice (``forward_passes``). A fair comparison gives ``plain`` the same
    number of samples: twice the epochs, or alpha=0 here. The line of "taylor" has no lower bound and can diverge.

    Evidence: the abstract names the idea (after a step on the current batch, the loss on a new batch should fall too),
    and that no parameters are added. The form of J follows MAML (Finn 2017) and MLDG (Li 2018), which fit the abstract
    [inferred]; neither text nor code could be read. Dropout draws a mask for each batch, and only the pass of the
    current batch updates running statistics [inferred].

    Deviations: because of the second derivatives, steps compute in float32, without ``torch.compile`` and fused
    attention, in a single process.
    """
    check_single_process("MLTP", run.processes)
    student = run.student()
    run.fit(
        Learner(student, None, run.label_terms()),
        streams={"other": run.data.train},
        update=LookAhead(alpha, beta, mode),
    )
    return student


@dataclass(frozen=True, slots=True)
class LookAhead:
    """The update rule of ``mltp``: ``together`` for one learner, with J in place of its loss.

    The stream ``other`` has the second batches. The rule has no state.

    Attributes:
        alpha: the learning rate of the look-ahead step; ``None`` for the learner's current one.
        beta: the weight of the loss on the second batch.
        mode: see ``mltp``.
    """

    alpha: float | None = None
    beta: float = 1.0
    mode: Mode = "full"

    def __call__(self, step: Step) -> None:
        """Update the learner by the gradient of J."""
        (learner,) = step.learners
        step.forward(learner, eager=True)
        loss = step.loss(learner)
        step.update(learner, self.objective(step, learner, loss))

    def objective(self, step: Step, learner: Learner, loss: Tensor) -> Tensor:
        """J, (); ``loss`` is L_i(theta), with its graph."""
        model, other = learner.model, step.draw("other")
        alpha = step.lr[learner] if self.alpha is None else self.alpha
        if self.mode == "taylor":
            other_loss = loss_at(step, learner, dict(model.named_parameters()), other)
            gradients, others = parameter_gradients(model, loss), parameter_gradients(model, other_loss)
            agreement = sum((gradients[name] * others[name]).sum() for name in gradients if name in others)
            return loss + self.beta * (other_loss - alpha * agreement)
        parameters = virtual_step(model, loss, alpha, first_order=self.mode == "first_order")
        other_loss = self.beta * loss_at(step, learner, parameters, other)
        return other_loss if self.mode == "maml" else loss + other_loss


def loss_at(step: Step, learner: Learner, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The loss of a learner whose terms read logits alone, for other parameters and another batch: ().

    Args:
        step: the current step.
        learner: the learner, without a teacher.
        parameters: see ``Tapped.with_parameters``; the result is twice differentiable with respect to them.
        batch: the batch. Running statistics of the network are not updated.
    """
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
        logits = learner.model.with_parameters(parameters, batch.inputs)
    loss, _ = learner.loss({None: ForwardPass(batch, Outputs(logits), None)}, step.progress)
    return loss
