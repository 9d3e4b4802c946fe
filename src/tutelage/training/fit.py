"""Training of learners on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tutelage.ambient import default_settings
from tutelage.config import Recipe
from tutelage.data.data import Data, Split
from tutelage.data.loader import mix_seeds
from tutelage.data.orders import Order, shuffled
from tutelage.errors import NETWORK_ERRORS, TutelageError, one_line
from tutelage.models.random_state import seeded
from tutelage.tasks import Task, find_task
from tutelage.training.batch_changes import check_changes
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution
from tutelage.training.learner import Learner
from tutelage.training.loop import Loop, Record
from tutelage.training.preparation import check_learners
from tutelage.training.processes import Processes
from tutelage.training.selection import Selected
from tutelage.training.streams import Streams
from tutelage.training.updates import UpdateRule, together


@dataclass(frozen=True)
class FitResult:
    """The results of a fit, besides the trained models.

    Attributes:
        history: one record per epoch: ``epoch``, ``lr`` (the largest of the first learner's parameters), ``learners``
            (each one's terms and metrics), ``seconds`` and ``forward_passes``, the number of samples that students and
            teachers processed, attacks on a teacher included, summed over processes. Passes of the held-out split are
            not counted.
        selected: the best epoch by learner's name; absent without a held-out split, and for learners that the task
            cannot evaluate.
        optimizers: the final ``state_dict`` of each learner's optimizer, by the learner's name.
    """

    history: tuple[Record, ...]
    selected: Mapping[str, Selected]
    optimizers: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@default_settings()
def fit(
    *learners: Learner,
    data: Data,
    recipe: Recipe | None = None,
    execution: Execution | None = None,
    update: UpdateRule = together,
    seed: int = 0,
    order: Order = shuffled,
    streams: Mapping[str, Split] | None = None,
    until: Callable[[Sequence[Record]], bool] | None = None,
    optimizers: Mapping[str, dict[str, Any]] | None = None,
    report: Callable[[Record], None] | None = None,
    task: Task | None = None,
) -> FitResult:
    """Train learners on a data set, in place.

    Args:
        learners: the cohort; all train on the same batches.
        data: its training split is trained on; the validation split, if any, selects an epoch. The test split is not
            read.
        recipe: epochs, batch size, optimizer and learning rate schedule.
        execution: the hardware, the processes, and the checkpoints from which the fit resumes; by default the best
            device of this machine, and no checkpoints.
        update: how the cohort takes a step.
        seed: of batches, views, projections and random numbers in models.
        order: how the samples of an epoch are distributed over batches.
        streams: further splits by name, as endless streams of batches for ``Step.draw``.
        until: called after each epoch with the records of all epochs; if it returns true, the fit ends.
        optimizers: states that the optimizers start with, such as ``FitResult.optimizers`` of an earlier fit of these
            learners. Learning rates and other options are those of this fit.
        report: called with each epoch's record, and first with those of a resumed fit's earlier epochs.
        task: the task that evaluates the networks; by default that of the data's targets.

    Returns:
        The history and the selected states. The models have the weights of the last epoch, or with ``ema`` the deployed
        networks their average, and are in eval mode.

    Raises:
        TutelageError: the learners do not fit the data or their sources; raised before training.
        NonFiniteError: a loss or a weight becomes NaN or infinite.
    """
    recipe, execution = recipe or Recipe(), execution or Execution.on()
    checkpoints = execution.checkpoints
    with ExitStack() as stack:
        stack.enter_context(seeded(mix_seeds(seed, 1)))
        loop = make_loop(
            learners, data, recipe, execution, update=update, seed=seed, order=order, streams=streams, task=task
        )
        if optimizers:
            loop.start_optimizers(optimizers)
        if checkpoints:
            _resume(loop, checkpoints)
        if not execution.processes.main:
            report = None
        if report:
            for record in loop.history:
                report(record)
        for learner in learners:
            stack.enter_context(execution.processes.shared_statistics(learner.model))
        stack.callback(loop.compiling.stop)
        loop.compiling.start()
        while len(loop.history) < recipe.epochs and not (until and loop.history and until(loop.history)):
            record = loop.epoch(len(loop.history))
            if checkpoints:
                _save(loop, checkpoints, execution.processes)
            if report:
                report(record)
    loop.averages.deploy()
    for learner in learners:
        learner.model.eval()
        learner.deployed.eval()
    states = {learner.name: optimizer.state_dict() for learner, optimizer in loop.optimizers.items()}
    return FitResult(tuple(loop.history), loop.selection.selected, states)


def make_loop(
    learners: Sequence[Learner],
    data: Data,
    recipe: Recipe,
    execution: Execution,
    *,
    update: UpdateRule = together,
    seed: int = 0,
    order: Order = shuffled,
    streams: Mapping[str, Split] | None = None,
    task: Task | None = None,
) -> Loop:
    """Check learners, move them to the device, try them on one batch, and return the loop that trains them.

    Raises:
        TutelageError: as ``fit``.
    """
    check_learners(learners)
    check_changes(recipe, learners, update, data)
    batches = Streams.of(data, recipe, learners, execution, seed=seed, order=order, streams=streams or {})
    return Loop(learners, data, recipe, update, task or find_task(data.targets.task), batches, execution)


def _resume(loop: Loop, checkpoints: Checkpoints) -> None:
    """Restore the newest saved state, if there is one."""
    state = checkpoints.load()
    if state is None:
        return
    try:
        loop.load_state_dict(state)
    except (*NETWORK_ERRORS, LookupError, OverflowError) as error:  # a checkpoint of another program can hold anything
        raise TutelageError(
            f"the checkpoints in {checkpoints.folder} are of another fit ({one_line(error)}); "
            "choose another folder or remove them"
        ) from error


def _save(loop: Loop, checkpoints: Checkpoints, processes: Processes) -> None:
    state = loop.state_dict()
    if processes.main:
        checkpoints.save(len(loop.history), state)
    processes.wait()
