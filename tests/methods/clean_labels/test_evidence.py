"""Evidence by cross-validation: which networks judge which samples, and what they record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods.clean_labels import gather
from tutelage.methods.pdiff import probability_difference
from tutelage.models.tapped import Tapped
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.updates import Step, together


class Recorded(Run):
    """Records what each network is trained on, and its logits for each training batch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trained: list[tuple[Tapped, set[int]]] = []
        self.differences: dict[int, list[float]] = {}
        self.probabilities: dict[int, list[Tensor]] = {}

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> FitResult:
        assert data is not None
        assert data.validation is None
        self.trained.append((learners[0].model, set(data.train.index.tolist())))
        inner = learners[0].sample_weight
        assert inner is not None

        def record(forward_pass: Any, progress: float) -> Tensor:
            batch = forward_pass.batch
            values = probability_difference(forward_pass.student["logits"], batch.targets)
            probabilities = forward_pass.student["logits"].detach().softmax(1)
            for index, value, row in zip(batch.index.tolist(), values.tolist(), probabilities, strict=True):
                self.differences.setdefault(index, []).append(value)
                self.probabilities.setdefault(index, []).append(row)
            return inner(forward_pass, progress)

        learners[0].sample_weight = record
        return super().fit(*learners, data=data, **options)


@pytest.fixture
def run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Recorded:
    shifted = replace(tiny_data, train=replace(tiny_data.train, index=tiny_data.train.index + 100))
    recipe = Recipe(epochs=3, batch_size=8, lr=0.1)
    return Recorded(shifted, lambda: tiny_model(int(torch.randint(9999, ()))), recipe=recipe, hardware=on_cpu, seed=1)


def test_each_sample_is_judged_by_the_network_that_was_trained_without_it(run: Recorded) -> None:
    split = run.data.train
    evidence = gather(run, split, 4)
    assert len(run.trained) == 4
    outputs = [run.predict(model, split).softmax(1) for model, _ in run.trained]
    for row, index in enumerate(split.index.tolist()):
        (without,) = [n for n, (_, indices) in enumerate(run.trained) if index not in indices]
        assert int(evidence.fold[row]) == without + 1
        assert torch.allclose(evidence.probabilities[row], outputs[without][row], atol=1e-6)
    assert torch.allclose(evidence.votes, torch.stack(outputs).mean(0), atol=1e-6)


def test_trajectories_and_differences_are_averaged_over_epochs_and_networks(run: Recorded) -> None:
    split = run.data.train
    evidence = gather(run, split, 3)
    for row, index in enumerate(split.index.tolist()):
        values = run.differences[index]
        assert len(values) == 2 * 3  # networks that were trained with it, times epochs: 32 samples in batches of 8
        assert float(evidence.difference[row]) == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert torch.allclose(evidence.trajectory[row], torch.stack(run.probabilities[index]).mean(0), atol=1e-5)


def test_recording_does_not_change_the_training(run: Recorded, state_of: Any, changed: Any) -> None:
    gather(run, run.data.train, 2)
    model, indices = run.trained[0]
    rows = torch.tensor([row for row, index in enumerate(run.data.train.index.tolist()) if index in indices])
    other = run.student(1)
    plain = Run(run.data, run._student, recipe=run.recipe, hardware=run.hardware, seed=run.seed)
    part = replace(run.data, train=run.data.train.subset(rows), validation=None)
    plain.fit(Learner(other, None, plain.label_terms()), data=part, update=_plainly)
    assert changed(state_of(model), state_of(other)) == set()


def _plainly(step: Step) -> None:
    together(step)


def test_a_class_with_fewer_samples_than_folds_is_refused(run: Recorded, refused: Any) -> None:
    with refused("class 'a' has 12 training samples", "13 folds", "use fewer folds"):
        gather(run, run.data.train, 13)
