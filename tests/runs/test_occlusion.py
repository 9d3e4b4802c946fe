"""The method occlusion: stages, the support vector machine, the deployed network, and errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.methods import find
from tutelage.methods.occlusion import joined, train_students
from tutelage.methods.occlusion.svm import fit_scale, fit_svm
from tutelage.models.export import export_onnx
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate, find_task
from tutelage.training import Run

Net = Callable[..., Tapped]
BRIEF = {"samples_per_class": 4, "c": 1.0}
STEPS: dict[str, Any] = {
    "hidden": "upper",
    "start": "teacher",
    "alpha": 0.7,
    "temperature": 4.0,
    "margin": 0.3,
    "samples_per_class": 4,
    "tuning_lr": 1.0,
}


@pytest.fixture
def run_of(tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware) -> Callable[..., Run]:
    """A run with a trained teacher of width 4; ``width`` is the student's."""

    def make(width: int = 4, epochs: int = 1, data: Data = tiny_data, **options: Any) -> Run:
        recipe = Recipe(epochs=epochs, batch_size=16, lr=0.05)
        run = Run(
            data, lambda: tiny_model(2, width=width), [trained_model()], recipe=recipe, hardware=on_cpu, **options
        )
        run.begin(find_task("classification"))
        return run

    return make


def test_student_sees_half_and_teacher_the_whole_image(run_of: Callable[..., Run]) -> None:
    """They share the batch; the hidden half does not affect the student."""
    run = run_of()
    teacher_inputs: list[Tensor] = []
    teacher = run.teacher()
    handle = teacher.module.register_forward_pre_hook(lambda _, args: teacher_inputs.append(args[0].detach().clone()))
    students = train_students(run, **STEPS)
    handle.remove()
    black = (0 - teacher.mean) / teacher.std
    assert teacher_inputs
    assert all((images[:, :, :4] != black).any() for images in teacher_inputs)
    images = torch.rand(5, 1, 8, 8)
    other_upper, other_lower = images.clone(), images.clone()
    other_upper[:, :, :4], other_lower[:, :, 4:] = torch.rand(2, 5, 1, 4, 8)
    for student in (students.fine_tuned, students.soft, students.triplet, joined(run, students.soft, students.triplet)):
        student.eval()
        assert torch.equal(student(images), student(other_upper))
        assert not torch.equal(student(images), student(other_lower))


@pytest.mark.parametrize(("width", "start", "fits"), [(4, "auto", 3), (3, "auto", 4), (4, "trained", 4)])
def test_student_starts_from_teacher_if_same_network(
    width: int, start: str, fits: int, run_of: Callable[..., Run]
) -> None:
    run = run_of(width)
    find("occlusion")(run, start=start, samples_per_class=4)
    assert len(run.fits) == fits
    assert run.notes["start"] == ("teacher" if fits == 3 else "trained")
    assert run.notes["c"] in (0.01, 0.1, 1.0, 10.0, 100.0)
    assert 0 <= run.notes["active_triplets"] <= 1
    assert 0 < run.notes["mean_distance"] <= 2


def test_initial_weights_are_those_of_teacher(run_of: Callable[..., Run], changed: Any) -> None:
    run = run_of()
    run.recipe = run.recipe.replace(lr=1e-9, weight_decay=0.0)
    students = train_students(run, **STEPS)
    for student in (students.fine_tuned, students.soft, students.triplet):
        for name, value in run.teacher().module.named_parameters():
            torch.testing.assert_close(student.module.get_parameter(name), value, rtol=0, atol=1e-6)


def test_students_differ_and_teacher_is_unchanged(run_of: Callable[..., Run], state_of: Any, changed: Any) -> None:
    """The teacher does not change; both students differ from the fine-tuned one and from each other."""
    run = run_of(epochs=2)
    before = state_of(run.teacher())
    students = train_students(run, **STEPS)
    assert changed(before, state_of(run.teacher())) == set()
    fine_tuned, soft, triplet = (state_of(model) for model in (students.fine_tuned, students.soft, students.triplet))
    assert changed(fine_tuned, soft)
    assert changed(fine_tuned, triplet)
    assert changed(soft, triplet)
    assert "module.fc.weight" not in changed(fine_tuned, triplet)  # that step has no label loss


def test_student_learns_from_visible_half(run_of: Callable[..., Run], tiny_data: Data) -> None:
    student = find("occlusion")(run_of(epochs=6), samples_per_class=4)
    assert evaluate(student, tiny_data)["accuracy"] > 0.85


def test_result_is_saved_as_one_network(tiny_npz: str, tmp_path: Path) -> None:
    shared = {"data": tiny_npz, "epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}
    shared |= {"channels_last": False, "workers": 0}
    execute(Config(student="resnet8x0.25", method="plain", **{**shared, "epochs": 8}), tmp_path / "teacher")
    config = Config(
        student="resnet8x0.25",
        method="occlusion",
        teacher=str(tmp_path / "teacher"),
        settings={"samples_per_class": 4, "hidden": "lower"},
        **shared,
    )
    result = execute(config, tmp_path / "run")
    images, data = torch.rand(5, 1, 8, 8), open_data(tiny_npz)
    opened_model = open_model(str(tmp_path / "run"), data)
    assert [operation["operation"] for operation in applied_operations(opened_model.module)] == ["front", "join"]
    assert torch.equal(opened_model(images), result.model.eval()(images))
    second_result = execute(config, tmp_path / "run")
    assert torch.equal(second_result.model.eval()(images), opened_model(images))
    assert evaluate(opened_model, data)["accuracy"] == result.metrics["test"]["accuracy"]
    assert result.metrics["notes"]["start"] == "teacher"

    runtime = pytest.importorskip("onnxruntime")
    export_onnx(opened_model, (1, 8, 8), tmp_path / "student.onnx")
    session = runtime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": images.numpy()})
    np.testing.assert_allclose(logits, opened_model(images).detach().numpy(), rtol=1e-3, atol=1e-4)


class Constant(nn.Module):
    """A network with the same embedding for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fc = nn.Linear(1, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer(x.new_ones(len(x), 1)))
        return logits


def test_collapse_is_an_error(run_of: Callable[..., Run], refused: Any) -> None:
    run = run_of()
    run._student = lambda: Tapped(Constant())
    with refused("after epoch 1 of the triplet loss all samples have the same embedding", "learning rate", "margin"):
        find("occlusion")(run, samples_per_class=4)


def test_invalid_settings_are_refused_before_training(run_of: Callable[..., Run], refused: Any) -> None:
    run = run_of(width=3)
    with refused("start=teacher", "TinyNet", "start=trained"):
        find("occlusion")(run, start="teacher", samples_per_class=4)
    with refused("a batch of 16", "cannot hold 9 samples"):
        find("occlusion")(run, samples_per_class=9)
    run._student = lambda: Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LogSoftmax(1)))
    with refused("classifier of Sequential", "nn.Linear"):
        find("occlusion")(run, samples_per_class=4)
    assert run.fits == []


# --- the support vector machine


def features(count: int = 60, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 5, generator=generator)
    return centres[labels] + 0.8 * torch.randn(count, 5, generator=generator), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_svm_equals_scikit_learn(classes: int) -> None:
    vectors, labels = features(classes=classes)
    weight, bias = fit_svm(vectors, labels, classes, c=0.7)
    expected = LinearSVC(C=0.7, dual=False, tol=1e-6, max_iter=10_000).fit(vectors.double().numpy(), labels.numpy())
    assert np.array_equal((vectors @ weight.T + bias).argmax(1).numpy(), expected.predict(vectors.double().numpy()))
    assert weight.shape == (classes, 5)


def test_svm_minimises_objective() -> None:
    """The gradient of ||(w, b)||^2 / 2 + C sum [1 - s (w x + b)]_+^2 is 0 there."""
    vectors, labels = features()
    weight, bias = (value.double().requires_grad_() for value in fit_svm(vectors, labels, 3, c=0.7))
    signs = 2 * F.one_hot(labels, 3).double() - 1
    hinge = (1 - signs * (vectors.double() @ weight.T + bias)).relu().square().sum()
    ((weight.square().sum() + bias.square().sum()) / 2 + 0.7 * hinge).backward()
    for value in (weight, bias):
        assert value.grad is not None
        assert value.grad.abs().max() < 1e-2


def test_class_without_samples_is_never_predicted() -> None:
    vectors, labels = features()
    weight, bias = fit_svm(vectors, 2 * labels, 5)
    answers = (vectors @ weight.T + bias).argmax(1)
    assert set(answers.tolist()) <= {0, 2, 4}


def test_scale_calibrates_probabilities() -> None:
    vectors, labels = features(400)
    weight, bias = fit_svm(vectors[:200], labels[:200], 3)
    logits = vectors[200:] @ weight.T + bias
    factor = fit_scale(logits, labels[200:])
    losses = {model: float(F.cross_entropy(model * factor * logits, labels[200:])) for model in (0.9, 1.0, 1.1)}
    assert losses[1.0] == min(losses.values())
    assert losses[1.0] < float(F.cross_entropy(logits, labels[200:]))


def test_c_is_selected_on_held_out_split(run_of: Callable[..., Run], tiny_data: Data) -> None:
    without_validation = run_of(data=replace(tiny_data, validation=None))
    students = train_students(without_validation, **STEPS)
    copies = [copy.deepcopy(model) for model in (students.soft, students.triplet)]
    joined(without_validation, students.soft, students.triplet)
    assert without_validation.notes["c"] == 1.0
    run_with_fixed_c = run_of()
    joined(run_with_fixed_c, *copies, c=3.0)
    assert run_with_fixed_c.notes["c"] == 3.0
