"""Update rules that do not update every learner on every batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.models import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Alternating, Learner, Step, fit
from tutelage.training.execution import Execution


class OnePerBatch:
    """Update one learner per batch, in turn."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, step: Step) -> None:
        learner = step.learners[len(self.names) % len(step.learners)]
        step.forward(learner)
        step.update(learner, step.loss(learner))
        self.names.append(learner.name)


def test_rule_may_update_one_learner_per_batch(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    learners = [
        Learner(tiny_model(seed=seed), None, {"ce": CrossEntropy()}, name=name) for seed, name in enumerate("ab")
    ]
    before = [next(learner.model.parameters()).clone() for learner in learners]
    rule = OnePerBatch()
    recipe = Recipe(epochs=1, batch_size=16)
    fit_result = fit(*learners, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), update=rule)
    assert len(rule.names) >= 2
    assert set(rule.names[::2]) == {"a"}
    for learner, initial in zip(learners, before, strict=True):
        assert not next(learner.model.parameters()).equal(initial)
        entry = fit_result.history[0]["learners"][learner.name]
        assert entry["ce"] > 0
        assert 0 <= entry["train_accuracy"] <= 1


def test_learner_that_is_never_updated_has_no_term_values(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    def update_first(step: Step) -> None:
        step.forward(step.learners[0])
        step.update(step.learners[0], step.loss(step.learners[0]))

    learners = [
        Learner(tiny_model(seed=seed), None, {"ce": CrossEntropy()}, name=name) for seed, name in enumerate("ab")
    ]
    fit_result = fit(
        *learners, data=tiny_data, recipe=Recipe(epochs=1), execution=Execution.on(on_cpu), update=update_first
    )
    assert "ce" in fit_result.history[0]["learners"]["a"]
    assert "ce" not in fit_result.history[0]["learners"]["b"]


@pytest.mark.parametrize("every", [1, 2, 4])
def test_alternating_updates_the_first_learner_last_and_on_every_nth_batch(
    every: int, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    learners = [
        Learner(tiny_model(seed=seed), None, {"ce": CrossEntropy()}, name=name) for seed, name in enumerate("abc")
    ]
    updates: list[str] = []
    passes: list[str] = []
    alternating = Alternating(every)

    def rule(step: Step) -> None:
        update, forward = step.update, step.forward
        step.update = lambda learner, loss: (updates.append(learner.name), update(learner, loss))[1]  # type: ignore[method-assign]
        step.forward = lambda learner, **options: (passes.append(learner.name), forward(learner, **options))[1]  # type: ignore[method-assign]
        alternating(step)
        updates.append("|")

    recipe = Recipe(epochs=2, batch_size=16)
    fit(*learners, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), update=rule)
    assert [*"".join(updates).split("|")[:-1]] == ["bca" if number % every == 0 else "bc" for number in range(1, 7)]
    assert passes == [name for name in updates if name != "|"]  # only the updated learners are run


def test_alternating_gives_the_first_learner_batches_of_a_stream(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    learners = [
        Learner(tiny_model(seed=seed), None, {"ce": CrossEntropy()}, name=name) for seed, name in enumerate("ab")
    ]
    other = tiny_data.train.subset(torch.arange(20))
    batches: list[tuple[str, bool]] = []
    alternating = Alternating(2, "other")

    def rule(step: Step) -> None:
        forward, batch = step.forward, step.batch
        step.forward = lambda learner, **options: (  # type: ignore[method-assign]
            batches.append((learner.name, step.batch is batch)),
            forward(learner, **options),
        )[1]
        alternating(step)
        if step.number % 2:
            assert torch.equal(step.batch.index, step.draw("other").index)
            assert int(step.batch.index.max()) < 20

    recipe = Recipe(epochs=2, batch_size=16)
    fit(
        *learners,
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
        update=rule,
        streams={"other": other},
    )
    assert batches == 3 * [("b", True), ("b", True), ("a", False)]


def test_fit_does_not_change_the_random_state_of_the_caller(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learner = Learner(tiny_model(seed=0), None, {"ce": CrossEntropy()})
    fit(learner, data=tiny_data, recipe=Recipe(epochs=1), execution=Execution.on(on_cpu))
    assert torch.rand(3).tolist() == pytest.approx(expected.tolist())
