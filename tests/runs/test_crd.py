"""The method crd: its memory covers the training split, and its two kinds of negatives teach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.terms import MemoryContrast
from tutelage.training import FitResult, Learner, Run

Net = Callable[..., Tapped]
BRIEF = {"count": 8}


class _RecordingRun(Run):
    """A run that records its learner."""

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        (self.learner,) = learners
        return super().fit(*learners, **options)


@pytest.fixture
def make_run(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Callable[..., _RecordingRun]:
    def make(data: Data = tiny_data, **changes: Any) -> _RecordingRun:
        recipe = Recipe(epochs=12, batch_size=16, lr=0.02, schedule="constant").replace(**changes)
        return _RecordingRun(data, tiny_model, [tiny_model(3, width=8)], recipe=recipe, hardware=on_cpu, seed=2)

    return make


def test_memory_has_a_row_of_unit_length_for_each_training_sample(make_run: Any, tiny_data: Data) -> None:
    run = make_run(epochs=2)
    find("crd")(run, count=8, width=6)
    term = run.learner.terms["crd"].term
    assert isinstance(term, MemoryContrast)
    assert term.memory.shape == (2, len(tiny_data.train), 6)
    torch.testing.assert_close(term.memory.norm(dim=2), torch.ones(2, len(tiny_data.train)))
    assert term.rows[tiny_data.train.index].tolist() == list(range(len(tiny_data.train)))


@pytest.mark.parametrize("negatives", ["memory", "batch"])
def test_embeddings_of_a_sample_become_more_alike_than_those_of_others(
    negatives: str, make_run: Any, tiny_data: Data
) -> None:
    """The contrastive loss of the last epoch is below that of the first."""
    run = make_run()
    find("crd")(run, negatives=negatives, count=16, weight=0.8)
    values = [epoch["learners"]["student"]["crd"] for epoch in run.fits[-1].history]
    assert values[-1] < 0.9 * values[0]


def test_negatives_of_the_batch_need_two_samples(make_run: Any, refused: Any) -> None:
    with refused("use a batch size of 2 or more, or negatives=memory"):
        find("crd")(make_run(batch_size=1), negatives="batch")
