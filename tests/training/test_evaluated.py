"""Which learners are evaluated on the held-out split."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, OnRole
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]


def test_a_learner_can_be_evaluated_although_no_term_reads_its_logits(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    records = []
    for evaluated in (None, True, False):
        model = tiny_model(1).with_roles({"answer": "fc"})
        learner = Learner(model, None, {"ce": OnRole("answer", CrossEntropy())}, evaluated=evaluated)
        fitted = fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
        records.append(fitted.history[-1]["learners"]["student"])
        assert bool(fitted.selected) == bool(evaluated)
    assert ["validation_accuracy" in record for record in records] == [False, True, False]
