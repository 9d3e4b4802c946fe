"""The student itself, as what it gave for this batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import OwnOutputs, Source
from tutelage.terms import CrossEntropy, SoftTargets, Term, View
from tutelage.training import Learner, fit

Net = Callable[..., Tapped]


class Far(Term):
    """How far the student's answer is from the teacher's."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> torch.Tensor:
        assert teacher is not None
        return (student["logits"] - teacher["logits"]).square().sum(1)


def test_it_gives_what_the_model_gave_and_no_gradient_flows(tiny_model: Net, batch: Batch) -> None:
    model = tiny_model()
    gave = model.tap(batch.inputs, ("logits", "stage1"))
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    found = OwnOutputs(model)(batch, ("logits",), {tiny_model(1): Outputs(torch.zeros(8, 4)), model: gave})
    for role in ("logits", "stage1"):
        assert torch.equal(found[role], gave[role])
        assert gave[role].requires_grad
        assert not found[role].requires_grad


def test_it_reads_the_model_and_runs_nothing(tiny_model: Net) -> None:
    model = tiny_model()
    source = OwnOutputs(model)
    assert source.reads == (model,)
    assert source.models == ()
    assert source.state_dict() == {}
    assert Source().reads == ()


@pytest.mark.parametrize("cohort", ["nobody", "another"])
def test_a_model_that_gave_nothing_here_cannot_teach_itself(cohort: str, tiny_model: Net, batch: Batch) -> None:
    given: dict[nn.Module, Outputs] = {tiny_model(1): Outputs(torch.zeros(8, 4))} if cohort == "another" else {}
    with pytest.raises(ValueError, match="only the outputs for the current batch, of a learner of this fit"):
        OwnOutputs(tiny_model())(batch, ("logits",), given)


def test_in_a_fit_a_model_is_as_far_from_itself_as_it_should_be(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    model = tiny_model(dropout=0.5)  # a second pass would differ
    learner = Learner(model, OwnOutputs(model), {"far": Far(), "kd": SoftTargets(2.0)})
    fitted = fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    values = fitted.history[0]["learners"]["student"]
    assert values["far"] == 0
    assert values["kd"] == pytest.approx(0, abs=1e-6)


def test_features_that_it_teaches_are_captured_though_the_student_reads_none(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    class Stage(Term):
        @property
        def teacher_roles(self) -> tuple[str, ...]:
            return ("stage1",)

        def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> torch.Tensor:
            assert teacher is not None
            return student["logits"].sum(1) * teacher["stage1"].mean((1, 2, 3))

    model = tiny_model()
    recipe = Recipe(epochs=1, batch_size=16)
    fitted = fit(Learner(model, OwnOutputs(model), {"stage": Stage()}), data=tiny_data, recipe=recipe, hardware=on_cpu)
    assert fitted.history[0]["learners"]["student"]["stage"] != 0


def test_on_a_view_it_is_refused_in_one_line(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Callable[..., object]
) -> None:
    class Same(View):
        def __call__(self, batch: Batch, student: Outputs, teacher: Outputs | None) -> Batch:
            return batch

    model = tiny_model()
    learner = Learner(model, OwnOutputs(model), {"ce": CrossEntropy(), "kd": SoftTargets().on(Same())})
    with refused("teacher of learner 'student'", "only the outputs for the current batch"):  # type: ignore[attr-defined]
        fit(learner, data=tiny_data, hardware=on_cpu)
