"""OwnOutputs: the student's own outputs for the batch as targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import OwnOutputs, Source
from tutelage.terms import CrossEntropy, SoftTargets, Term, View
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]


class LogitDistance(Term):
    """The squared distance between the logits of student and teacher."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> torch.Tensor:
        assert teacher is not None
        return (student["logits"] - teacher["logits"]).square().sum(1)


def test_outputs_equal_the_models_own_without_gradients(tiny_model: Net, batch: Batch) -> None:
    model = tiny_model()
    own_outputs = model.tap(batch.inputs, ("logits", "stage1"))
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run again"))
    outputs = OwnOutputs(model)(batch, ("logits",), {tiny_model(1): Outputs(torch.zeros(8, 4)), model: own_outputs})
    for role in ("logits", "stage1"):
        assert torch.equal(outputs[role], own_outputs[role])
        assert own_outputs[role].requires_grad
        assert not outputs[role].requires_grad


def test_own_outputs_reads_the_model_and_runs_no_model(tiny_model: Net) -> None:
    model = tiny_model()
    source = OwnOutputs(model)
    assert source.reads == (model,)
    assert source.models == ()
    assert source.state_dict() == {}
    assert Source().reads == ()


@pytest.mark.parametrize("cohort", ["empty", "another"])
def test_missing_outputs_of_the_model_are_refused(cohort: str, tiny_model: Net, batch: Batch) -> None:
    outputs: dict[nn.Module, Outputs] = {tiny_model(1): Outputs(torch.zeros(8, 4))} if cohort == "another" else {}
    with pytest.raises(TutelageError, match="only the outputs for the current batch, of a learner of this fit"):
        OwnOutputs(tiny_model())(batch, ("logits",), outputs)


def test_distance_to_own_outputs_in_a_fit_is_0(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    model = tiny_model(dropout=0.5)  # a second pass would differ
    learner = Learner(model, OwnOutputs(model), {"distance": LogitDistance(), "kd": SoftTargets(2.0)})
    fit_result = fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
    values = fit_result.history[0]["learners"]["student"]
    assert values["distance"] == 0
    assert values["kd"] == pytest.approx(0, abs=1e-6)


def test_features_read_only_from_the_teacher_are_captured(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    class FeatureTarget(Term):
        @property
        def teacher_roles(self) -> tuple[str, ...]:
            return ("stage1",)

        def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> torch.Tensor:
            assert teacher is not None
            return student["logits"].sum(1) * teacher["stage1"].mean((1, 2, 3))

    model = tiny_model()
    recipe = Recipe(epochs=1, batch_size=16)
    fit_result = fit(
        Learner(model, OwnOutputs(model), {"stage": FeatureTarget()}),
        data=tiny_data,
        recipe=recipe,
        execution=Execution.on(on_cpu),
    )
    assert fit_result.history[0]["learners"]["student"]["stage"] != 0


def test_own_outputs_on_a_view_are_refused(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., object]
) -> None:
    class Identity(View):
        def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
            return batch

    model = tiny_model()
    learner = Learner(model, OwnOutputs(model), {"ce": CrossEntropy(), "kd": SoftTargets().on(Identity())})
    with refused("teacher of learner 'student'", "only the outputs for the current batch"):  # type: ignore[attr-defined]
        fit(learner, data=tiny_data, execution=Execution.on(on_cpu))
