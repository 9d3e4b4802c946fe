"""Views: terms on another batch, which is made from the current one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.views import Flipped, Net
from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen, Peers, Source
from tutelage.terms import AttentionTransfer, CrossEntropy, SoftTargets, Term, View, Weighted
from tutelage.training import Learner, fit
from tutelage.training.execution import Execution
from tutelage.training.updates import Step, in_turn

Terms = dict[str, Term | Weighted]


@pytest.fixture
def batch() -> Batch:
    """Eight grey images."""
    index = torch.arange(8)
    inputs = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, index % 4, index, torch.stack([index, index], 1))


class ReadingView(Flipped):
    """Reads outputs of the student and of the teacher."""

    roles = ("logits", "stage1")
    teacher_roles = ("logits", "embedding")


class FixedStatistics(Flipped):
    """Does not update running statistics."""

    updates_statistics = False


class InputRecorder:
    """Records the inputs of a model."""

    def __init__(self, model: Tapped) -> None:
        self.inputs: list[Tensor] = []
        model.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs[0].detach().clone()))


def loss_of(learner: Learner, batch: Batch, progress: float = 0.0) -> tuple[Tensor, list[float]]:
    """The learner's loss in a step, and its terms' values."""
    roles = {learner: learner.roles()}
    step = Step(batch, 0, progress, [learner], streams={}, roles=roles, apply=lambda *_: None, autocast=nullcontext)
    learner.train()
    step.forward(learner)
    return step.loss(learner), step.term_values[learner].tolist()


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) per sample, by torch's function."""
    return (
        F.kl_div((student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="none").sum(1)
        * temperature**2
    )


# --- the loss


def test_loss_is_the_sum_over_both_batches(tiny_model: Net, batch: Batch) -> None:
    model, teacher, flipped = tiny_model(), tiny_model(1, width=6), Flipped()
    terms: Terms = {
        "ce": 0.5 * CrossEntropy(),
        "kd": SoftTargets(2.0).on(flipped),
        "ce flipped": 3 * CrossEntropy().on(flipped),
    }
    total, values = loss_of(Learner(model, Frozen(teacher), terms), batch)
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters()]
    reference, mirrored_images = tiny_model(), batch.inputs.flip(3)
    reference.train()
    expected = [
        F.cross_entropy(reference(batch.inputs), batch.targets),
        kl(reference(mirrored_images), teacher(mirrored_images), 2.0).mean(),
        F.cross_entropy(reference(mirrored_images), batch.targets),
    ]
    assert values == pytest.approx([value.item() for value in expected], rel=1e-5)
    (0.5 * expected[0] + expected[1] + 3 * expected[2]).backward()  # type: ignore[no-untyped-call]
    assert total.item() == pytest.approx(0.5 * values[0] + values[1] + 3 * values[2], rel=1e-6)
    for gradient, parameter in zip(gradients, reference.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_terms_that_share_a_view_share_its_pass(tiny_model: Net, batch: Batch) -> None:
    model, teacher, flipped = tiny_model(), tiny_model(1), Flipped()
    student_runs, teacher_runs = InputRecorder(model), InputRecorder(teacher)
    terms: Terms = {
        "ce": CrossEntropy(),
        "kd": SoftTargets().on(flipped),
        "kd2": 2 * SoftTargets(2.0).on(flipped),
        "at": AttentionTransfer((("stage1", "stage1"),)).on(flipped),
    }
    loss_of(Learner(model, Frozen(teacher), terms), batch)
    assert len(flipped.calls) == 1
    for runs, expected in (
        (student_runs, [batch.inputs, batch.inputs.flip(3)]),
        (teacher_runs, [batch.inputs.flip(3)]),
    ):
        batches = [inputs for inputs in runs.inputs if len(inputs) == 8]
        assert len(batches) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(batches, expected, strict=True))


def test_two_views_take_two_passes(tiny_model: Net, batch: Batch) -> None:
    model, views = tiny_model(), (Flipped(), Flipped(samples=5))
    runs = InputRecorder(model)
    loss_of(Learner(model, None, {str(n): CrossEntropy().on(view) for n, view in enumerate(views)}), batch)
    assert [len(inputs) for inputs in runs.inputs] == [8, 5]  # no pass of the current batch, which no term reads
    assert [len(view.calls) for view in views] == [1, 1]


def test_view_whose_terms_have_weight_0_is_not_made(tiny_model: Net, batch: Batch) -> None:
    model, teacher, early, raise_error = tiny_model(), tiny_model(1), ReadingView(), Flipped()
    runs, teacher_runs = InputRecorder(model), InputRecorder(teacher)
    terms: Terms = {
        "ce": CrossEntropy(),
        "early": (lambda progress: 1.0 if progress < 0.5 else 0.0) * SoftTargets().on(early),
        "never": 0 * CrossEntropy().on(raise_error),
    }
    learner = Learner(model, Frozen(teacher), terms)
    _, values = loss_of(learner, batch, 0.6)
    assert values[1:] == [0.0, 0.0]
    assert (len(early.calls), len(runs.inputs), len(teacher_runs.inputs)) == (0, 1, 0)
    assert learner.views(0.6) == ()
    _, values = loss_of(learner, batch, 0.4)
    assert values[1] > 0
    assert (len(early.calls), len(runs.inputs)) == (1, 3)
    assert len([inputs for inputs in teacher_runs.inputs if len(inputs) == 8]) == 2  # for the view and on its batch
    assert raise_error.calls == []
    assert learner.views(0.4) == (early,)
    assert learner.views() == (early, raise_error)


# --- sample weights


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_a_view_multiply_the_sample_weights_of_the_learner(
    weighted: bool, tiny_model: Net, batch: Batch
) -> None:
    weight = torch.tensor([2.0, 0.0, 0.5, 0.0, 1.0])
    flipped, model = Flipped(weight, samples=5), tiny_model()
    by_index = (lambda forward_pass, progress: forward_pass.batch.index.float() + 1) if weighted else None
    terms: Terms = {"ce": CrossEntropy(), "flipped": CrossEntropy().on(flipped)}
    _, values = loss_of(Learner(model, None, terms, sample_weight=by_index), batch)
    reference = tiny_model().train()
    clean = F.cross_entropy(reference(batch.inputs), batch.targets, reduction="none").tolist()
    mirrored_images = F.cross_entropy(reference(batch.inputs[:5].flip(3)), batch.targets[:5], reduction="none").tolist()
    factors = [n + 1 if weighted else 1 for n in range(8)]
    assert values == pytest.approx(
        [
            sum(f * v for f, v in zip(factors, clean, strict=True)) / 8,
            sum(w * f * v for w, f, v in zip(weight.tolist(), factors, mirrored_images, strict=False)) / 5,
        ],
        rel=1e-5,
    )


def test_weights_of_a_view_do_not_affect_a_single_value(tiny_model: Net, batch: Batch) -> None:
    class Whole(Term):
        def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
            return student["logits"].sum() * 0 + 7

    flipped = Flipped(torch.full((8,), 0.25))
    _, values = loss_of(Learner(tiny_model(), None, {"single": Whole().on(flipped), "ce": CrossEntropy()}), batch)
    assert values[0] == 7


# --- inputs of views and sources


def test_view_gets_the_outputs_of_its_roles_without_gradients(tiny_model: Net, batch: Batch) -> None:
    model, teacher, reads = tiny_model(), tiny_model(1), ReadingView()
    total, _ = loss_of(Learner(model, Frozen(teacher), {"ce": CrossEntropy().on(reads)}), batch)
    ((current, student, teacher_outputs),) = reads.calls
    assert current is batch
    assert teacher_outputs is not None
    assert student["stage1"].shape == (8, 4, 8, 8)
    assert teacher_outputs["embedding"].shape == (8, 8)
    assert student["logits"].shape == teacher_outputs["logits"].shape == (8, 4)
    for outputs in (student, teacher_outputs):
        assert not any(value.requires_grad for value in (outputs["logits"], *outputs.features.values()))
    assert total.requires_grad


def test_roles_of_batch_and_views(tiny_model: Net) -> None:
    reads, flipped = ReadingView(), Flipped()
    terms: Terms = {
        "ce": CrossEntropy(),
        "at": AttentionTransfer((("stage2", "stage1"),)).on(flipped),
        "kd": (lambda progress: 1 - progress) * SoftTargets().on(reads),
    }
    learner = Learner(tiny_model(), Frozen(tiny_model(1)), terms)
    assert learner.roles() == ("logits", "stage1")  # of the label loss and of the view
    assert learner.roles(flipped) == ("stage2",)
    assert learner.roles(reads) == ("logits",)
    assert learner.teacher_roles() == learner.teacher_roles(0.5) == ("logits", "embedding")
    assert learner.teacher_roles(1.0) == ()
    assert learner.teacher_roles(view=flipped) == learner.teacher_roles(1.0, flipped) == ("stage1",)
    assert learner.teacher_roles(view=reads) == ("logits",)
    assert learner.teacher_roles(1.0, reads) == ()


def test_pass_on_a_view_ends_at_the_last_layer_that_its_terms_read(tiny_model: Net, batch: Batch) -> None:
    model, teacher, flipped = tiny_model(), tiny_model(1), Flipped()
    batch_sizes: list[int] = []
    model.module.get_submodule("fc").register_forward_hook(lambda _, inputs, __: batch_sizes.append(len(inputs[0])))
    terms: Terms = {"ce": CrossEntropy(), "at": AttentionTransfer((("stage1", "stage1"),)).on(flipped)}
    model.trace(batch.inputs[:2])
    batch_sizes.clear()
    loss_of(Learner(model, Frozen(teacher), terms), batch)
    assert len(flipped.calls) == 1
    assert batch_sizes == [8]


@pytest.mark.parametrize("reads", [False, True])
def test_source_gets_the_batch_of_the_view(tiny_model: Net, batch: Batch, reads: bool) -> None:
    class RecordingSource(Source):
        def __init__(self) -> None:
            self.requests: list[tuple[Batch, tuple[str, ...], int]] = []

        def __call__(self, batch: Batch, roles: Any, cohort: Any) -> Outputs:
            self.requests.append((batch, tuple(roles), len(cohort)))
            return Outputs(torch.zeros(len(batch), 4))

    model, source, flipped = tiny_model(), RecordingSource(), Flipped(samples=3)
    source.reads = (model,) if reads else ()
    terms: Terms = {"kd": SoftTargets(), "flipped": SoftTargets().on(flipped)}
    loss_of(Learner(model, source, terms), batch)
    (first, roles, cohort), (second, view_roles, view_cohort) = source.requests
    assert first is batch
    assert torch.equal(second.inputs, batch.inputs[:3].flip(3))
    assert roles == view_roles == ("logits",)
    assert (cohort, view_cohort) == (int(reads), 0)  # a source that reads no model gets no outputs of learners


# --- statistics


def test_view_updates_running_statistics_unless_it_opts_out(
    tiny_model: Net, batch: Batch, state_of: Any, changed: Any
) -> None:
    def train(view: View | None) -> dict[str, Tensor]:
        model = tiny_model()
        terms: Terms = {"ce": CrossEntropy()}
        if view:
            terms["flipped"] = CrossEntropy().on(view)
        total, _ = loss_of(Learner(model, None, terms), batch)
        total.backward()  # type: ignore[no-untyped-call]
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        state: dict[str, Tensor] = state_of(model)
        return state

    clean, updated, unchanged = train(None), train(Flipped(samples=4)), train(FixedStatistics(samples=4))
    assert changed(clean, unchanged) == set()
    assert int(clean["module.bn1.num_batches_tracked"]) == 1
    assert int(updated["module.bn1.num_batches_tracked"]) == 2
    assert "module.bn1.running_mean" in changed(clean, updated)


# --- a fit


def test_fit_trains_on_views_and_reports_their_terms(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    flipped = Flipped()
    learner = Learner(
        tiny_model(), Frozen(trained_model()), {"ce": CrossEntropy(), "kd": 2 * SoftTargets().on(flipped)}
    )
    recipe = Recipe(epochs=4, batch_size=16, lr=0.1)
    fit_result = fit(learner, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu))
    values = [record["learners"]["student"]["kd"] for record in fit_result.history]
    assert values[-1] < values[0]
    assert len(flipped.calls) == 1 + 4 * 3  # the dry run and every step


def test_ema_teaches_on_views(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    model = tiny_model()
    learner = Learner(model, EMA(model), {"ce": CrossEntropy(), "kd": SoftTargets().on(Flipped())})
    fit_result = fit(learner, data=tiny_data, recipe=Recipe(epochs=2, batch_size=16), execution=Execution.on(on_cpu))
    assert fit_result.history[-1]["learners"]["student"]["kd"] > 0


def test_peers_in_turn_may_have_label_losses_on_views(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    models = [tiny_model(n) for n in range(2)]
    learners = [
        Learner(
            model,
            Peers(models[1 - n]),
            {"kd": SoftTargets(), "ce": CrossEntropy().on(Flipped())},
            name=f"net{n}",
        )
        for n, model in enumerate(models)
    ]
    fit_result = fit(
        *learners,
        data=tiny_data,
        update=in_turn,
        recipe=Recipe(epochs=1, batch_size=16),
        execution=Execution.on(on_cpu),
    )
    assert all(entry["ce"] > 0 for entry in fit_result.history[0]["learners"].values())


# --- validation of the deployed network


def test_deployed_network_is_validated_and_selected(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    class SumOfNetworks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = tiny_model().module, tiny_model(1).module

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + 100 * self.second(x)  # type: ignore[no-any-return]

    from tutelage.evaluation.metrics import accuracy
    from tutelage.evaluation.predict import predict

    network = Tapped(SumOfNetworks(), *tiny_data.mean_std)
    deployed = Tapped(network.module.get_submodule("first"), *tiny_data.mean_std)
    learner = Learner(network, None, {"ce": 0.01 * CrossEntropy()}, deployed=deployed)
    assert Learner(network, None, {"ce": CrossEntropy()}).deployed is network
    fit_result = fit(
        learner, data=tiny_data, recipe=Recipe(epochs=3, batch_size=16, lr=0.3), execution=Execution.on(on_cpu)
    )
    assert tiny_data.validation is not None
    expected = accuracy(predict(deployed, tiny_data.validation, device="cpu"), tiny_data.validation.labels)
    assert fit_result.history[-1]["learners"]["student"]["validation_accuracy"] == float(expected)
    best = fit_result.selected["student"]
    accuracies = [record["learners"]["student"]["validation_accuracy"] for record in fit_result.history]
    assert best.score == max(accuracies)
    assert set(best.state) == set(deployed.module.state_dict())
