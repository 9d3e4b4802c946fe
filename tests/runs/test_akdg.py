"""The method akdg: losses, steps, and every pair of generators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.generators import CustomGenerator
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches, mix_seeds
from tutelage.methods import find, installed
from tutelage.methods.akdg.views import TeacherImages
from tutelage.models.generator import Generator
from tutelage.models.networks.dcgan import DCGAN
from tutelage.models.networks.mlp_gan import MLPGenerator
from tutelage.models.outputs import Outputs
from tutelage.models.random_state import seeded
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights
from tutelage.terms import View
from tutelage.terms.generated import GeneratedImages
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.learner import ForwardPass

RECIPE = Recipe(epochs=2, batch_size=16)
SMALL = {"critic_width": 0.1, "critic_steps": 2}
Make = Callable[[], Tapped]


def dcgan(width: float) -> Make:
    return lambda: Generator(DCGAN((1, 8, 8), width, latent=6))


def mlp(width: float, latent: int = 6) -> Make:
    return lambda: Generator(MLPGenerator((1, 8, 8), width, latent))


class RecordingRun(Run):
    """A run that records its learners instead of training them."""

    learners: tuple[Learner, ...] = ()

    def fit(self, *learners: Learner, **changes: Any) -> FitResult:
        self.learners, self.changes = learners, changes
        return FitResult((), {})


@pytest.fixture
def recording_run(tiny_data: Data) -> Callable[..., RecordingRun]:
    def make(**settings: Any) -> RecordingRun:
        with torch.random.fork_rng():
            torch.manual_seed(9)
            teacher = dcgan(0.1)()
        run = RecordingRun(tiny_data, mlp(0.05), [teacher], recipe=RECIPE, seed=4)
        find("akdg")(run, **SMALL | settings)
        return run

    return make


def a_batch(data: Data, size: int = 16) -> Batch:
    return next(iter(Batches(data.train, batch_size=size).epoch(0)))


# --- the losses


def test_inputs_of_discriminators(recording_run: Callable[..., RecordingRun], tiny_data: Data) -> None:
    student, of_real, of_teacher = recording_run().learners
    assert (student.name, of_real.name, of_teacher.name) == ("student", "D_S", "D_KD")
    assert {name: w.at(0) for name, w in student.terms.items()} == {"real": 1.0, "teacher": 1.0}
    assert student.source is None
    assert of_real.source is None
    assert of_real.terms["real"].view is None
    assert isinstance(of_real.terms["student"].view, GeneratedImages)
    assert isinstance(of_teacher.terms["teacher"].view, TeacherImages)
    assert isinstance(of_teacher.terms["student"].view, GeneratedImages)
    shapes = [[tuple(p.shape) for p in learner.model.parameters()] for learner in (of_real, of_teacher)]
    assert shapes[0] == shapes[1]
    pairs = zip(of_real.model.parameters(), of_teacher.model.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs if a.ndim > 1)


def passes_of(
    learner: Learner, batch: Batch, images_by_view: dict[View | None, Tensor]
) -> dict[View | None, ForwardPass]:
    """Forward passes whose views return these images."""
    passes: dict[View | None, ForwardPass] = {None: ForwardPass(batch, Outputs(None), None)}
    for view, images in images_by_view.items():
        image_batch = Batch(images, batch.targets, batch.index, batch.key)
        passes[view] = ForwardPass(image_batch, learner.model.tap(images, learner.roles(view)), None)
    return passes


def test_distributions_are_compared_not_pairs(recording_run: Callable[..., RecordingRun], tiny_data: Data) -> None:
    _, _, learner = recording_run().learners
    learner.model.eval()
    batch = a_batch(tiny_data)
    student_images, teacher_images = torch.rand(2, 16, 1, 8, 8).unbind()
    order = torch.randperm(16)
    losses = []
    for images in (teacher_images, teacher_images[order]):
        images_by_view = {learner.terms["teacher"].view: images, learner.terms["student"].view: student_images}
        losses.append(learner.loss(passes_of(learner, batch, images_by_view), 0.0)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    scores = [learner.model.tap(images, ("score",))["score"].flatten() for images in (teacher_images, student_images)]
    expected = sum(max(0.0, 1 - s) for s in scores[0].tolist()) + sum(max(0.0, 1 + s) for s in scores[1].tolist())
    assert losses[0] == pytest.approx(expected / 16, rel=1e-5)


def test_latents_are_drawn_independently(
    recording_run: Callable[..., RecordingRun], tiny_data: Data, on_cpu: Hardware
) -> None:
    latents: list[tuple[str, Tensor]] = []
    student, teacher = mlp(0.05)(), mlp(0.1)()
    for name, model in (("student", student), ("teacher", teacher)):
        model.module.register_forward_pre_hook(
            lambda _m, image_batch, name=name: latents.append((name, image_batch[0].clone()))
        )
    run = Run(tiny_data, lambda: student, [teacher], recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
    find("akdg")(run, **SMALL)
    training_latents = [(name, z) for name, z in latents if len(z) == 16]
    # per step: for D_S, D_KD's teacher, D_KD's student; and for the generator at each second of three steps
    assert [name for name, _ in training_latents].count("student") == 3 * 2 + 1
    assert [name for name, _ in training_latents].count("teacher") == 3
    assert all(not torch.equal(a, b) for i, (_, a) in enumerate(training_latents) for _, b in training_latents[:i])


def gradient(run: RecordingRun, weight: float | None = None) -> Tensor:
    """The gradient of the student's loss by its weights, with fixed latents and fixed discriminators."""
    learner = run.learners[0]
    for other in run.learners[1:]:
        other.model.eval()
    assert isinstance(run.data.train.inputs, Tensor)
    batch = a_batch(run.data)
    torch.manual_seed(0)
    outputs = learner.model.train().tap(batch.inputs, learner.roles())
    loss, _ = learner.loss({None: ForwardPass(batch, outputs, None)}, 0.0)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learner.parameters()))])


def test_generator_gradient_is_sum_of_two_terms(recording_run: Callable[..., RecordingRun]) -> None:
    sum_of_gradients = [gradient(recording_run(weight=weight)) for weight in (1.0, 2.0, 3.5)]
    vanilla = gradient(recording_run(weight=0))
    step = sum_of_gradients[1] - sum_of_gradients[0]
    assert step.norm() > 1e-6
    assert torch.allclose(sum_of_gradients[0] - vanilla, step, rtol=1e-4, atol=1e-7)
    assert torch.allclose(sum_of_gradients[2], vanilla + 3.5 * step, rtol=1e-4, atol=1e-7)


def test_without_real_images_only_the_teacher_counts(recording_run: Callable[..., RecordingRun]) -> None:
    student, critic = recording_run(real=False, weight=2).learners
    assert list(student.terms) == ["teacher"]
    assert critic.name == "D_KD"
    assert critic.roles() == ()  # the real batch is not read


def test_optimiser_settings(recording_run: Callable[..., RecordingRun]) -> None:
    changes = recording_run(lr=0.003).changes
    optimizer = changes["optimizer"]([nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 0.003
    assert optimizer.defaults["betas"] == (0.0, 0.9)
    assert optimizer.defaults["weight_decay"] == 0
    assert changes["schedule"] == "constant"
    assert changes["data"].views.count == 1  # real images without augmentation
    assert changes["update"].every == 2


# --- the steps


def train_reference(data: Data, student: nn.Module, critic: nn.Module, *, seed: int, epochs: int, every: int) -> None:
    """An ordinary GAN in plain torch, trained in place."""
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.0, 0.9)) for m in (student, critic)]
    latent = int(student.latent)  # type: ignore[arg-type]
    number = 0
    with seeded(mix_seeds(seed, 1)):
        for epoch in range(epochs):
            for batch in Batches(data.train, batch_size=16, seed=seed).epoch(epoch):
                real_scores = critic((batch.inputs - 0.5) / 0.5)
                fake = student(torch.randn(16, latent)).detach()
                scores = critic((fake - 0.5) / 0.5)
                optimizers[1].zero_grad()
                (torch.relu(1 - real_scores).mean() + torch.relu(1 + scores).mean()).backward()
                optimizers[1].step()
                number += 1
                if number % every == 0:
                    images = student(torch.randn(16, latent))
                    optimizers[0].zero_grad()
                    (-critic((images - 0.5) / 0.5)).mean().backward()
                    optimizers[0].step()


@pytest.mark.parametrize("make", [mlp(0.05), dcgan(0.1)], ids=["mlp", "dcgan"])
def test_weight_zero_equals_ordinary_gan(
    make: Make, tiny_data: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for teachers in ([], [dcgan(0.1)()]):  # a teacher has no effect then
        run = Run(tiny_data, make, teachers, recipe=RECIPE, hardware=on_cpu, seed=4)
        states.append(state_of(find("akdg")(run, weight=0, **SMALL)))
    assert changed(*states) == set()
    start = RecordingRun(tiny_data, make, seed=4)
    find("akdg")(start, weight=0, **SMALL)
    student, critic = (copy.deepcopy(learner.model.module).train() for learner in start.learners)
    train_reference(tiny_data, student, critic, seed=4, epochs=2, every=2)
    expected = state_of(student)
    assert changed({f"module.{name}": value for name, value in expected.items()}, _bare(states[0])) == set()


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("module.")}


def test_generator_steps_on_every_nth_batch(tiny_data: Data, on_cpu: Hardware) -> None:
    run = Run(tiny_data, mlp(0.05), [mlp(0.1)()], recipe=Recipe(epochs=3, batch_size=16), hardware=on_cpu)
    find("akdg")(run, critic_width=0.1, critic_steps=4)  # three batches per epoch: none for the generator in the first
    entries = [record["learners"]["student"] for record in run.fits[0].history]
    assert [set(entry) for entry in entries] == [set(), {"real", "teacher"}, {"real", "teacher"}]
    for name in ("D_S", "D_KD"):
        for record in run.fits[0].history:
            entry = record["learners"][name]
            assert set(entry) == ({"real", "student"} if name == "D_S" else {"teacher", "student"})
            assert all(0 < value < 3 for value in entry.values())
    passes = run.fits[0].history[0]["forward_passes"]
    assert passes == {"student": 3 * 16 * (2 + 4), "teacher": 3 * 16}  # 2 draws, 4 critic passes; G_S does not step
    assert not run.selected


# --- every pair


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("make", "make_teacher"),
    [
        (dcgan(0.1), dcgan(0.1)),
        (dcgan(0.1), dcgan(0.2)),
        (mlp(0.05), dcgan(0.2)),
        (dcgan(0.1), mlp(0.1, latent=9)),
        (lambda: Generator(CustomGenerator()), mlp(0.1)),
        (mlp(0.05), lambda: Generator(CustomGenerator())),
    ],
    ids=["the same", "a narrower student", "mlp of dcgan", "dcgan of mlp", "one's own learns", "one's own teaches"],
)
@pytest.mark.parametrize("method", [name for name in installed() if find(name).task == "generation"])
def test_method_trains_pairs_of_generators(
    method: str,
    make: Make,
    make_teacher: Make,
    tiny_data: Data,
    on_cpu: Hardware,
    tmp_path: Path,
    state_of: Any,
    changed: Any,
) -> None:
    torch.manual_seed(1)
    teacher = make_teacher().train()
    before = state_of(teacher)
    initial: list[dict[str, Tensor]] = []

    def train_method(folder: Path, stop: int | None) -> tuple[Tapped, Run]:
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        def student() -> Tapped:
            student_model = make()
            initial.append(state_of(student_model))
            return student_model

        run = Run(tiny_data, student, [teacher], recipe=RECIPE, hardware=on_cpu, seed=4, folder=folder, report=report)
        return find(method)(run), run

    student, run = train_method(tmp_path / "whole", None)

    # The student changed, and the teacher did not.
    after = state_of(student)
    assert changed(initial[0], after)
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert changed(before, state_of(teacher)) == set()
    assert all(p.grad is None for p in teacher.parameters())
    assert changed(initial[0], state_of(Run(tiny_data, make, seed=4).student())) == set()

    # A stopped and resumed run is equal.
    with pytest.raises(StoppedError):
        train_method(tmp_path / "stopped", 1)
    second_student, resumed_run = train_method(tmp_path / "stopped", None)
    assert changed(after, state_of(second_student)) == set()
    assert [entry["learners"] for entry in resumed_run.fits[0].history] == [e["learners"] for e in run.fits[0].history]

    # Only the student is saved.
    save_weights(tmp_path / "student.safetensors", student.module, {})
    new_model = make()
    load_weights(tmp_path / "student.safetensors", new_model.module)
    images = [g.sample(5, torch.Generator().manual_seed(0)) for g in (new_model, student) if isinstance(g, Generator)]
    assert torch.equal(*images)


# --- errors


@pytest.mark.parametrize("method", [name for name in installed() if find(name).task in (None, "classification")])
def test_other_methods_refuse_generators(
    method: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, refused: Any
) -> None:
    run = Run(tiny_data, dcgan(0.1), [tiny_model()], recipe=RECIPE, hardware=on_cpu)
    with refused("DCGAN is a network for generation", "this method is for classification"):
        find(method)(run)


def test_generator_is_refused_as_teacher_of_classifier(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, refused: Any
) -> None:
    run = Run(tiny_data, tiny_model, [dcgan(0.1)()], recipe=RECIPE, hardware=on_cpu)
    with refused("DCGAN is a network for generation", "this method is for classification"):
        find("hinton")(run)


def test_other_networks_are_refused(tiny_data: Data, tiny_model: Callable[..., Tapped], refused: Any) -> None:
    with refused("TinyNet is no generator", "this method is for generation"):
        find("akdg")(Run(tiny_data, tiny_model, [dcgan(0.1)()]))
    with refused("TinyNet is no generator", "give a network that generates images"):
        find("akdg")(Run(tiny_data, dcgan(0.1), [tiny_model()]))
    with refused("needs a teacher"):
        find("akdg")(Run(tiny_data, dcgan(0.1)))
    with refused("the generator has no loss"):
        find("akdg")(Run(tiny_data, dcgan(0.1)), weight=0, real=False)
    with refused("the teacher generates images of shape (3, 8, 8)", "(1, 8, 8)"):
        find("akdg")(Run(tiny_data, dcgan(0.1), [Generator(DCGAN((3, 8, 8), 0.1))]))
