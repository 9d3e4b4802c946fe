"""Cohorts: several learners that are updated together, in turn or by a custom rule."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.fits import Changed, Net, Probe, StateOf, batches_of
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.models.outputs import Outputs
from tutelage.sources import Peers, Source
from tutelage.terms import CrossEntropy, Hint, SoftTargets
from tutelage.training import Learner, Step, fit, in_turn, together
from tutelage.training.execution import Execution

# --- cohorts


class StepRecorder(Source):
    """A source that records the steps of its learner."""

    def __init__(self, events: list[str], name: str) -> None:
        self.events, self.name = events, name

    def __call__(self, batch: Batch, roles: Collection[str], cohort: Any) -> Outputs:
        raise AssertionError("no term reads the teacher")

    def after_step(self) -> None:
        self.events.append(f"step {self.name}")


def test_together_runs_all_forward_passes_before_any_update(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    events: list[str] = []
    learners = []
    for name in "abc":
        model = tiny_model(seed=ord(name))
        model.module.register_forward_hook(
            lambda *_, name=name: events.append(f"forward {name}") if torch.is_grad_enabled() else None
        )
        learners.append(Learner(model, StepRecorder(events, name), {"ce": CrossEntropy()}, name=name))
    data = replace(tiny_data, validation=None)
    fit(*learners, data=data, recipe=Recipe(epochs=1, batch_size=24), execution=Execution.on(on_cpu), update=together)
    assert events == [*("forward a", "forward b", "forward c"), *("step a", "step b", "step c")] * 2


def test_together_gives_peers_outputs_from_before_the_step(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """Each network's targets in a step are the other network's outputs before the step."""
    nets = [tiny_model(seed=1), tiny_model(seed=2)]
    outputs: dict[int, list[Tensor]] = {0: [], 1: []}
    targets: dict[int, list[Tensor]] = {0: [], 1: []}

    def probe(number: int) -> Probe:
        def look(student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
            assert teacher is not None
            outputs[number].append(student["logits"].detach().clone())
            targets[number].append(teacher["logits"].clone())
            assert not teacher["logits"].requires_grad

        return Probe(look, teacher_roles=("logits",))

    learners = [
        Learner(net, Peers(nets[1 - number]), {"ce": CrossEntropy(), "x": probe(number)}, name=str(number))
        for number, net in enumerate(nets)
    ]
    fit(*learners, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
    for number in (0, 1):
        assert len(targets[number]) == 3
        assert all(map(torch.equal, targets[number], outputs[1 - number]))


def test_in_turn_gives_the_second_network_updated_outputs_of_the_first(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    matches: list[bool] = []

    def look(student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        assert teacher is not None
        updated_copy = copy.deepcopy(first).train()  # after its step on this batch
        matches.append(torch.equal(teacher["logits"], updated_copy(batch.inputs)))

    learners = (
        Learner(first, Peers(second), {"ce": CrossEntropy(), "kd": SoftTargets(1.0)}, name="first"),
        Learner(second, Peers(first), {"ce": CrossEntropy(), "x": Probe(look, teacher_roles=("logits",))}, name="2nd"),
    )
    fit(
        *learners,
        data=tiny_data,
        recipe=Recipe(epochs=2, batch_size=16),
        execution=Execution.on(on_cpu),
        update=in_turn,
    )
    assert matches == [True] * 6


def test_in_turn_updates_running_statistics_once_per_batch(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, changed: Changed
) -> None:
    recipe = Recipe(epochs=1, batch_size=48)
    nets = [tiny_model(seed=seed) for seed in range(3)]
    references = [copy.deepcopy(net).train() for net in nets]
    learners = [
        Learner(
            net, Peers(*(n for n in nets if n is not net)), {"ce": CrossEntropy(), "kd": SoftTargets()}, name=str(k)
        )
        for k, net in enumerate(nets)
    ]
    fit(*learners, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), update=in_turn)
    (batch,) = batches_of(tiny_data, recipe)
    for net, reference in zip(nets, references, strict=True):
        reference(batch.inputs)
        assert changed(dict(net.named_buffers()), dict(reference.named_buffers())) == set()
        assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_identical_networks_stay_identical_under_together_but_not_under_in_turn(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    for update, differ in ((together, False), (in_turn, True)):
        nets = [tiny_model(seed=1), tiny_model(seed=1)]
        learners = [
            Learner(net, Peers(nets[1 - k]), {"ce": CrossEntropy(), "kd": SoftTargets(1.0)}, name=str(k))
            for k, net in enumerate(nets)
        ]
        fit(*learners, data=tiny_data, recipe=short, execution=Execution.on(on_cpu), update=update)
        assert bool(changed(state_of(nets[0]), state_of(nets[1]))) == differ


@pytest.mark.parametrize("update", [together, in_turn])
def test_gradients_do_not_reach_peers(
    update: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe, state_of: StateOf, changed: Changed
) -> None:
    """A network that other networks imitate trains to the same weights as it does alone."""
    target_peer, imitating_peer, single_learner = tiny_model(seed=1), tiny_model(seed=2), tiny_model(seed=1)
    fit(
        Learner(imitating_peer, Peers(target_peer), {"kd": SoftTargets(1.0)}, name="imitator"),
        Learner(target_peer, None, {"ce": CrossEntropy()}, name="imitated"),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
        update=update,
    )
    fit(
        Learner(single_learner, None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    assert changed(state_of(target_peer), state_of(single_learner)) == set()


def test_peers_may_read_features_that_no_own_term_reads(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe
) -> None:
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    fit_result = fit(
        Learner(first, None, {"ce": CrossEntropy()}, name="first"),
        Learner(second, Peers(first), {"ce": CrossEntropy(), "hint": Hint("stage1", "stage2", "mean")}, name="second"),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
    )
    assert fit_result.history[-1]["learners"]["second"]["hint"] > 0


@pytest.mark.parametrize("update", [together, in_turn])
def test_train_accuracy_is_that_of_the_pass_before_the_update(
    update: Any, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """For every network alike, before its own step on the batch, which would raise the accuracy."""
    nets = [tiny_model(seed=1), tiny_model(seed=2)]
    learners = [
        Learner(net, Peers(nets[1 - k]), {"ce": CrossEntropy(), "kd": 0.0 * SoftTargets()}, name=str(k))
        for k, net in enumerate(nets)
    ]
    recipe = Recipe(epochs=1, batch_size=48, lr=0.5)
    (batch,) = batches_of(tiny_data, recipe)
    expected = [(copy.deepcopy(n).train()(batch.inputs).argmax(1) == batch.targets).float().mean() for n in nets]
    fit_result = fit(*learners, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), update=update)
    accuracies = [fit_result.history[0]["learners"][str(k)]["train_accuracy"] for k in range(2)]
    assert accuracies == pytest.approx([float(accuracy) for accuracy in expected])


def test_custom_update_rule(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, short: Recipe) -> None:
    """A rule is a function of a step; this one leaves out every second update."""
    steps: list[int] = []

    def alternate(step: Step) -> None:
        learner = step.learners[0]
        step.forward(learner)
        loss = step.loss(learner)
        if len(steps) % 2 == 0:
            step.update(learner, loss)
        steps.append(1)

    model = tiny_model()
    fit(
        Learner(model, None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=short,
        execution=Execution.on(on_cpu),
        update=alternate,
    )
    assert len(steps) == 6
