"""Training learners on a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tutelage.ambient import default_settings
from tutelage.config import Hardware, Recipe
from tutelage.data.data import Data, Split
from tutelage.data.loader import mix_seeds
from tutelage.data.orders import Order, shuffled
from tutelage.errors import NETWORK_ERRORS, TutelageError, one_line
from tutelage.tasks import Task, find
from tutelage.training.checkpoint import Checkpoints, seeded
from tutelage.training.hardware import resolve
from tutelage.training.learner import Learner
from tutelage.training.loop import Loop, Record
from tutelage.training.processes import Processes
from tutelage.training.selection import Selected
from tutelage.training.updates import UpdateRule, together


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind, beside the models themselves.

    Attributes:
        history: a record an epoch: ``epoch``, ``lr``, ``learners`` (each one's terms and accuracies), ``seconds`` and
            ``forward_passes``, the samples that were run through networks that learn ("student") and through those that
            only teach ("teacher", an attack on one included), in all processes. The held-out part is not counted.
        selected: by learner's name; absent where nothing was held out or nothing was trained that the task evaluates.
    """

    history: tuple[Record, ...]
    selected: Mapping[str, Selected]


@default_settings()
def fit(
    *learners: Learner,
    data: Data,
    recipe: Recipe | None = None,
    hardware: Hardware | None = None,
    update: UpdateRule = together,
    seed: int = 0,
    order: Order = shuffled,
    streams: Mapping[str, Split] | None = None,
    until: Callable[[Record], bool] | None = None,
    checkpoints: Checkpoints | None = None,
    report: Callable[[Record], None] | None = None,
    processes: Processes | None = None,
    task: Task | None = None,
) -> FitResult:
    """Train learners on a data set, in place.

    Args:
        learners: those that train on the same batches.
        data: its training part is trained on; its validation part, if any, selects an epoch. The test part is not read.
        recipe: epochs, batch size, optimiser and schedule.
        hardware: device, precision and layout.
        update: how the cohort steps.
        seed: of batches, views, projections and whatever draws random numbers in a model.
        order: how the batches of an epoch are composed.
        streams: further parts to draw batches from, by name, without an end; an update rule does with ``Step.draw``.
        until: asked of each epoch's record; the fit ends with the first for which it is true.
        checkpoints: where to keep the state after each epoch, and to go on from if some are there.
        report: called with each epoch's record, also with those that a resumed fit has behind it.
        processes: which process this is, when several train together.
        task: what is asked of the networks, which an epoch is selected by; that of the data's targets unless given.

    Returns:
        The history and the selected states. The models hold the last epoch's weights and are in eval mode.

    Raises:
        TutelageError: when the learners do not fit the data or their sources; before anything is trained.
        NonFiniteError: when a loss or a weight becomes NaN or infinite.
    """
    recipe = recipe or Recipe()
    if processes is None:
        processes = Processes.current((hardware or Hardware()).device)
    hardware = resolve(hardware or Hardware(), processes)
    with ExitStack() as stack:
        stack.enter_context(seeded(mix_seeds(seed, 1)))
        loop = Loop(
            learners,
            data,
            recipe,
            hardware,
            update,
            seed,
            processes,
            order,
            streams or {},
            task or find(data.targets.task),
        )
        if checkpoints:
            _go_on(loop, checkpoints)
        for record in loop.history:
            _report(report, processes, record)
        for learner in learners:
            stack.enter_context(processes.shared_statistics(learner.model))
        stack.callback(loop.compiling.stop)
        loop.compiling.start()
        while len(loop.history) < recipe.epochs and not (until and loop.history and until(loop.history[-1])):
            record = loop.epoch(len(loop.history), checkpoints)
            if checkpoints:
                state = loop.state_dict()
                if processes.main:
                    checkpoints.save(len(loop.history), state)
                processes.wait()
            _report(report, processes, record)
    for learner in learners:
        learner.model.eval()
        learner.deployed.eval()
    return FitResult(tuple(loop.history), loop.selection.selected)


def _go_on(loop: Loop, checkpoints: Checkpoints) -> None:
    """Take up the newest state that is kept, if any is."""
    state = checkpoints.load()
    if state is None:
        return
    try:
        loop.load_state_dict(state)
    except (*NETWORK_ERRORS, LookupError, OverflowError) as error:  # whatever a checkpoint of somebody else holds
        raise TutelageError(
            f"the checkpoints in {checkpoints.folder} are of another fit ({one_line(error)}); "
            "choose another folder or remove them"
        ) from error


def _report(report: Callable[[Record], None] | None, processes: Processes, record: Record) -> None:
    if report and processes.main:
        report(record)
