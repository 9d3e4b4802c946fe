"""The batches of the method mean_teacher_lc: labelled and unlabelled samples, and their parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs.partly_labelled import SHORT_RECIPE, RecordingRun, average_of
from tutelage.config import Hardware
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches
from tutelage.data.orders import LabelledFirst
from tutelage.methods import find
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.terms.part import Part
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.processes import Processes
from tutelage.training.updates import together

# --- its batches


@pytest.mark.parametrize(("size", "share", "first", "of"), [(160, 0.2, 10, 48), (10, 0.3, 3, 10), (10, 0.01, 1, 10)])
def test_a_share_of_each_batch_has_labels(
    size: int, share: float, first: int, of: int, recording_run: Callable[..., RecordingRun]
) -> None:
    """A batch has at most the 48 samples of the data."""
    run = recording_run(recipe=SHORT_RECIPE.replace(batch_size=size), labelled=share)
    assert run.order == LabelledFirst(first)
    assert run.learner.terms["consistency_labelled"].at(0.9) == pytest.approx(100 * first / of)


@pytest.mark.parametrize(("world", "labelled"), [(2, 0.2), (2, 0.3), (5, 0.2)])
def test_each_process_separates_its_labelled_samples(
    world: int, labelled: float, partly_labelled: Data, any_model: Callable[[], Tapped]
) -> None:
    learners = []
    for rank in range(world):
        processes = Processes(rank, world)
        run = RecordingRun(partly_labelled, any_model, recipe=SHORT_RECIPE, seed=3, processes=processes)
        find("mean_teacher_lc")(run, labelled=labelled)
        learners.append(run.learner)
        first, others = run.learner.views()
        for batch in Batches(
            partly_labelled.train, batch_size=10, seed=3, order=run.order, rank=rank, world=world
        ).epoch(0):
            assert (first(batch, Outputs(None), None).targets >= 0).all()
            assert (others(batch, Outputs(None), None).targets < 0).all()


def test_inputs_of_student_and_average(
    partly_labelled: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    """Each runs on the labelled samples, then on the others; the average gets another view of the same samples."""
    passes: list[tuple[str, Batch, Tensor]] = []

    class Watched(Run):
        def fit(self, *learners: Learner, **options: Any) -> FitResult:
            models = {"student": learners[0].model, "average": average_of(learners[0]).model}

            def watch(step: Any) -> None:
                handles = [
                    model.module.register_forward_pre_hook(
                        lambda _, inputs, name=name: passes.append((name, step.batch, inputs[0].clone()))
                    )
                    for name, model in models.items()
                ]
                together(step)
                for handle in handles:
                    handle.remove()

            return super().fit(*learners, update=watch, **options)

    model = find("mean_teacher_lc")(
        Watched(partly_labelled, any_model, recipe=SHORT_RECIPE, hardware=on_cpu), labelled=0.2
    )
    unlabelled: list[int] = []
    for network, attribute in (("student", "inputs"), ("average", "second")):
        of_network = [(batch, inputs) for name, batch, inputs in passes if name == network]
        assert len(of_network) == 2 * 3 * (40 // 8)
        for number, (batch, inputs) in enumerate(of_network):
            assert (batch.targets >= 0).tolist() == [True] * 2 + [False] * 8
            rows = slice(2, None) if number % 2 else slice(2)
            assert torch.equal(inputs, (getattr(batch, attribute)[rows] - model.mean) / model.std)
            assert batch.second is not None
            assert not torch.equal(batch.second, batch.inputs)
        unlabelled += [index for batch, _ in of_network[::2] for index in batch.index[2:].tolist()]
    assert sorted(unlabelled) == sorted(6 * list(range(8, 48)))  # an epoch is one pass over unlabelled samples


def test_parts_do_not_share_batch_statistics(
    partly_labelled: Data, any_model: Callable[[], Tapped], on_cpu: Hardware
) -> None:
    """The labelled samples' loss does not depend on the unlabelled ones."""
    losses = []
    for change in (0, 40):
        assert isinstance(partly_labelled.train.inputs, Tensor)
        inputs = partly_labelled.train.inputs.clone()
        inputs[8:] = inputs[8:] // 2 + change
        data = replace(partly_labelled, train=replace(partly_labelled.train, inputs=inputs))
        run = Run(data, any_model, recipe=SHORT_RECIPE.replace(epochs=1, batch_size=48), hardware=on_cpu, seed=3)
        find("mean_teacher_lc")(run, labelled=8 / 48)
        losses.append(run.fits[0].history[0]["learners"]["student"])
    assert losses[0]["ce"] == losses[1]["ce"]
    assert losses[0]["consistency"] != losses[1]["consistency"]


@pytest.mark.parametrize(("first", "size", "cut"), [(2, 5, 2), (5, 5, 2), (9, 4, 2), (1, 4, 1)])
def test_parts_of_a_batch(first: int, size: int, cut: int) -> None:
    """A batch that is not larger than the first part, as in the dry run, is halved."""
    numbers = torch.arange(size)
    batch = Batch(
        numbers[:, None].float(), numbers, numbers, torch.stack([numbers] * 2, 1), numbers.float(), -numbers[:, None]
    )
    for part, expected in ((Part(first), numbers[:cut]), (Part(first, others=True), numbers[cut:])):
        rows = part(batch, Outputs(None), None)
        for field in (rows.targets, rows.index, rows.inputs[:, 0], rows.weight):
            assert field is not None
            assert field.tolist() == expected.tolist()
        assert rows.key is not None
        assert rows.key.tolist() == [[i, i] for i in expected]
        assert rows.second is not None
        assert rows.second[:, 0].tolist() == (-expected).tolist()


def test_empty_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        Part(0)
