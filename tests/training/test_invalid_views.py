"""Views that cannot be used are refused before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.views import Flipped, Net
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.models.outputs import Outputs
from tutelage.sources import Frozen, Peers
from tutelage.terms import CrossEntropy, SoftTargets, View
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution

# --- refused views


def test_peers_refuse_terms_on_views(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    models = [tiny_model(n) for n in range(2)]
    learners = [
        Learner(models[0], Peers(models[1]), {"kd": SoftTargets().on(Flipped())}, name="a"),
        Learner(models[1], Peers(models[0]), {"kd": SoftTargets()}, name="b"),
    ]
    with refused(
        "teacher of learner 'a'", "only the outputs for the current batch", "give terms on a view another source"
    ):
        fit(*learners, data=tiny_data, execution=Execution.on(on_cpu))


class Raises(View):
    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        raise ValueError("not today\nnor tomorrow")


class FromFunction(View):
    def __init__(self, function: Callable[[Batch], Any]) -> None:
        self.function = function

    def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
        return self.function(batch)  # type: ignore[no-any-return]


INVALID_VIEWS: dict[str, tuple[View, tuple[str, ...]]] = {
    "a view that raises": (Raises(), ("Raises of learner 'student' failed on a first batch", "not today")),
    "a view without __call__": (View(), ("View of learner 'student'", "must define __call__")),
    "no batch": (
        FromFunction(lambda batch: batch.inputs),
        ("FromFunction of learner 'student'", "must return a Batch", "Tensor"),
    ),
    "None": (
        FromFunction(lambda batch: None),
        ("FromFunction of learner 'student'", "must return a Batch", "NoneType"),
    ),
    "weights of a wrong shape": (
        FromFunction(lambda batch: replace(batch, weight=torch.ones(len(batch), 1))),
        ("FromFunction of learner 'student'", "(4,)", "(4, 1)"),
    ),
    "one weight for all": (
        FromFunction(lambda batch: replace(batch, weight=torch.ones(1))),
        ("FromFunction of learner 'student'", "(4,)", "(1,)"),
    ),
    "images with another number of channels": (
        FromFunction(lambda batch: replace(batch, inputs=batch.inputs.repeat(1, 3, 1, 1))),
        ("learner 'student', on FromFunction,", "(3, 8, 8)"),
    ),
    "fewer labels than images": (
        FromFunction(lambda batch: replace(batch, targets=batch.targets[:2])),
        ("term 'ce' of learner 'student' failed on a first batch",),
    ),
}


@pytest.mark.parametrize(("view", "fragments"), INVALID_VIEWS.values(), ids=list(INVALID_VIEWS))
def test_invalid_view_is_reported_in_one_line(
    view: View, fragments: tuple[str, ...], tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    model = tiny_model().train()
    with refused(*fragments):
        fit(Learner(model, None, {"ce": CrossEntropy().on(view)}), data=tiny_data, execution=Execution.on(on_cpu))
    assert all(module.training for module in model.modules())


def test_view_that_needs_a_teacher_is_refused_without_one(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    from tutelage.attacks import BoundarySamples

    learner = Learner(tiny_model(), None, {"ce": CrossEntropy().on(BoundarySamples(tiny_model(1)))})
    with refused("BoundarySamples of learner 'student'", "needs a teacher's outputs"):
        fit(learner, data=tiny_data, execution=Execution.on(on_cpu))


def test_regressor_of_a_term_on_a_view_is_built_from_its_outputs(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    from tutelage.terms import Hint

    hint = Hint("stage1", "stage1")
    learner = Learner(
        tiny_model(), Frozen(tiny_model(1, width=6)), {"ce": CrossEntropy(), "hint": hint.on(Flipped(samples=2))}
    )
    fit_result = fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
    assert isinstance(hint.regressor, nn.Conv2d)
    assert fit_result.history[0]["learners"]["student"]["hint"] > 0
