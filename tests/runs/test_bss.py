"""The method bss: weights over the run, terms, and side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.attacks import BoundarySamples
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.methods.bss import alpha, beta
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import View
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]


class RecordingRun(Run):
    """A run that records its learners instead of training them."""

    learners: tuple[Learner, ...] = ()

    def fit(self, *learners: Learner, **_: Any) -> FitResult:
        self.learners = learners
        return FitResult((), {})


@pytest.fixture
def learner(tiny_data: Data, tiny_model: Net) -> Callable[..., Learner]:
    """``learner(**settings)``: the learner of the method."""

    def make(**settings: Any) -> Learner:
        run = RecordingRun(tiny_data, tiny_model, [tiny_model(1)])
        find("bss")(run, **settings)
        (method_learner,) = run.learners
        return method_learner

    return make


@pytest.mark.parametrize(
    ("epoch", "kd", "boundary"), [(1, 3.9625, 1.9666667), (40, 2.5, 0.6666667), (60, 1.75, 0.0), (80, 1.0, 0.0)]
)
def test_weights_over_eighty_epochs(epoch: int, kd: float, boundary: float) -> None:
    assert alpha(epoch / 80) == pytest.approx(kd, abs=1e-6)
    assert beta(epoch / 80) == pytest.approx(boundary, abs=1e-6)
    assert beta(epoch / 80) >= 0


def test_weights_at_the_start() -> None:
    assert (alpha(0.0), beta(0.0)) == (4.0, 2.0)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-(1/B) sum q^T log p^T, by torch's cross-entropy with soft labels."""
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("temperature", [3.0, 1.5])
def test_gradient_equals_paper_loss(progress: float, temperature: float, learner: Callable[..., Learner]) -> None:
    """CE + alpha H + beta H', with H without T^2; the value differs by the entropy of the teacher's outputs."""
    bss_learner = learner(temperature=temperature)
    torch.manual_seed(0)
    labels, index = torch.randint(4, (8,)), torch.arange(8)
    z, z_moved = torch.randn(8, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    v, v_moved = 3 * torch.randn(8, 4), 3 * torch.randn(2, 4)
    batch = Batch(torch.zeros(8, 1, 8, 8), labels, index, None)
    boundary_batch = Batch(torch.zeros(2, 1, 8, 8), labels[:2], index[:2], None, torch.tensor([2.0, 0.0]))
    (view,) = bss_learner.views()
    passes: dict[View | None, ForwardPass] = {
        None: ForwardPass(batch, Outputs(z), Outputs(v)),
        view: ForwardPass(boundary_batch, Outputs(z_moved), Outputs(v_moved)),
    }
    total, _ = bss_learner.loss(passes, progress)
    gradients = torch.autograd.grad(total, (z, z_moved), allow_unused=True)
    falling, boundary = 1 + 3 * (1 - progress), max(0.0, 2 * (1 - 4 * progress / 3))
    expected = (
        F.cross_entropy(z, labels)
        + falling * soft_cross_entropy(z, v, temperature)
        + boundary * soft_cross_entropy(z_moved[:1], v_moved[:1], temperature)  # the other sample does not count
    )
    for actual, expected_gradient in zip(gradients, torch.autograd.grad(expected, (z, z_moved)), strict=True):
        torch.testing.assert_close(
            torch.zeros_like(expected_gradient) if actual is None else actual, expected_gradient, rtol=1e-4, atol=1e-6
        )
    if boundary:
        assert gradients[1] is not None
        assert gradients[1][0].any()
    assert bss_learner.views(progress) == ((view,) if boundary else ())


def test_label_loss_can_be_combined_with_hinton_loss(learner: Callable[..., Learner]) -> None:
    bss_learner = learner(kd_alpha=0.9, kd_temperature=2.0)
    assert {name: weighted.at(0.0) for name, weighted in bss_learner.terms.items()} == pytest.approx(
        {"ce": 0.1, "kd": 0.9, "soft": 4 / 9, "boundary": 2 / 9}
    )
    assert set(learner().terms) == {"ce", "soft", "boundary"}


def test_settings_are_passed_to_the_view(learner: Callable[..., Learner]) -> None:
    (view,) = learner(share=0.5, steps=3, step_size=0.1, norm="squared", discard_failed=True).views()
    assert isinstance(view, BoundarySamples)
    settings = (view.share, view.steps, view.step_size, view.norm, view.discard_failed, view.updates_statistics)
    assert settings == (0.5, 3, 0.1, "squared", True, True)
    (view,) = learner(statistics="frozen").views()
    assert isinstance(view, BoundarySamples)
    settings = (view.share, view.steps, view.step_size, view.norm, view.discard_failed, view.updates_statistics)
    assert settings == (0.25, 10, 0.3, "first", False, False)


def test_samples_move_to_teacher_boundary(tiny_data: Data, tiny_model: Net) -> None:
    teacher = tiny_model(1)
    run = RecordingRun(tiny_data, tiny_model, [teacher])
    student = find("bss")(run)
    (bss_learner,) = run.learners
    (view,) = bss_learner.views()
    assert isinstance(view, BoundarySamples)
    assert view.teacher is teacher
    assert isinstance(bss_learner.source, Frozen)
    assert bss_learner.source.models == (teacher,)
    assert bss_learner.model is bss_learner.deployed is student


def test_single_teacher_is_required(tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    with refused("needs a teacher"):
        find("bss")(Run(tiny_data, tiny_model))
    with refused("got 2"):
        find("bss")(Run(tiny_data, tiny_model, [tiny_model(1), tiny_model(2)]))


@pytest.mark.parametrize(
    "settings",
    [{"share": 0}, {"share": 1.1}, {"steps": 0}, {"step_size": 0}, {"norm": "third"}, {"statistics": "lost"}],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    ((name, value),) = settings.items()
    with refused(name, value):
        find("bss")(Run(tiny_data, tiny_model, [tiny_model(1)]), **settings)


# --- training


@pytest.mark.parametrize("labels", ["hard", "soft", "half of them missing", "none"])
def test_trains_with_any_labels(
    labels: str, tiny_data: Data, soft: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    from dataclasses import replace

    data = {"hard": tiny_data, "soft": soft}.get(labels, tiny_data)
    if labels not in ("hard", "soft"):
        labels_before = tiny_data.train.labels.clone()
        labels_before[:: 2 if labels.startswith("half") else 1] = -1
        data = replace(tiny_data, train=replace(tiny_data.train, labels=labels_before))
    recipe = Recipe(epochs=4, batch_size=16, lr=0.1)
    run = Run(data, tiny_model, [trained_model()], recipe=recipe, hardware=on_cpu)
    student = find("bss")(run)
    values = [record["learners"]["student"]["boundary"] for record in run.fits[0].history]
    assert values[-1] == 0  # beta is 0 in the last quarter
    assert (values[1] > 0) == (labels != "none")
    assert all(torch.isfinite(p).all() for p in student.parameters())


def test_frozen_statistics_are_those_of_clean_batches(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    """With a tiny learning rate, both runs have the same network on the clean batches."""
    recipe = Recipe(epochs=1, batch_size=16, lr=1e-30, weight_decay=0)
    student, teacher = trained_model(2).state_dict(), trained_model()

    def after(method: str, **settings: Any) -> dict[str, Tensor]:
        def make() -> Tapped:
            model = tiny_model()
            model.load_state_dict(student)
            return model

        run = Run(tiny_data, make, [teacher], recipe=recipe, hardware=on_cpu)
        return find(method)(run, **settings).state_dict()

    clean, frozen, updated_statistics = (
        after("plain"),
        after("bss", statistics="frozen"),
        after("bss", statistics="updated"),
    )
    assert all(torch.equal(clean[name], frozen[name]) for name in clean)
    assert updated_statistics["module.bn1.num_batches_tracked"] > clean["module.bn1.num_batches_tracked"]
    assert not torch.equal(updated_statistics["module.bn1.running_mean"], clean["module.bn1.running_mean"])


def test_repeated_sample_counts_once(tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware) -> None:
    """The recorded term is the mean over the boundary samples alone."""
    run = RecordingRun(tiny_data, tiny_model, [trained_model()])
    find("bss")(run, share=1.0)
    (bss_learner,) = run.learners
    (view,) = bss_learner.views()
    assert bss_learner.source is not None
    assert isinstance(tiny_data.train.inputs, Tensor)
    images = tiny_data.train.inputs[:16].permute(0, 3, 1, 2) / 255
    index = torch.arange(16)
    batch = Batch(images, tiny_data.train.labels[:16], index, None)
    teacher = bss_learner.source(batch, ("logits",), {})
    student = Outputs(F.one_hot(batch.targets, 4).float())
    misclassified = list(range(5, 16))
    student["logits"][misclassified] = student["logits"][misclassified].roll(1, dims=1)
    boundary_batch = view(batch, student, teacher)
    assert len(boundary_batch) == 16
    answer = bss_learner.model.eval().tap(boundary_batch.inputs)
    teacher_outputs = bss_learner.source(boundary_batch, ("logits",), {})
    passes: dict[View | None, ForwardPass] = {
        None: ForwardPass(batch, student, teacher),
        view: ForwardPass(boundary_batch, answer, teacher_outputs),
    }
    _, values = bss_learner.loss(passes, 0.0)
    p, q = (z["logits"].div(3).softmax(1) for z in (answer, teacher_outputs))
    kl = (q * (q / p).log()).sum(1).tolist()
    fitting = [n for n in range(5) if int(teacher["logits"][n].argmax()) == int(batch.targets[n])]
    assert len(fitting) >= 2
    first = {int(i): kl[position] for position, i in reversed(list(enumerate(boundary_batch.index)))}
    assert set(first) == set(fitting)
    assert values[list(bss_learner.terms).index("boundary")].item() == pytest.approx(
        9 * sum(first.values()) / len(first), rel=1e-4
    )
