"""The method omada: frozen networks, its control, the direction of its effect, and errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.nets import mlp
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split, open_data
from tutelage.data.modality import Vectors
from tutelage.evaluation import calibration_gap, ece, predict
from tutelage.methods import find
from tutelage.methods.omada import fit_student, paths_of
from tutelage.methods.omada.manifold import autoencoding_error, latents_of, trained_autoencoder, trained_manifold
from tutelage.methods.omada.paths import entropies
from tutelage.models.tapped import Tapped
from tutelage.training import Run

BRIEF = {"manifold_epochs": 1, "steps": 3, "latent": 4, "width": 0.05}  # for the conformance tests


@pytest.fixture
def run(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Run]:
    def make(data: Data = tiny_data, **options: Any) -> Run:
        recipe = Recipe(**({"epochs": 1, "batch_size": 16, "lr": 0.05} | options))
        return Run(data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, seed=3)

    return make


def test_autoencoding_error_equals_plain_loops() -> None:
    torch.manual_seed(0)
    images, decoded, latents = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2), torch.randn(2, 3)
    expected = [
        sum((a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)) / 4
        + 0.1 * sum(v**2 for v in z.tolist()) / 3
        for x, y, z in zip(images, decoded, latents, strict=True)
    ]
    assert autoencoding_error(decoded, images, latents, 0.1).tolist() == pytest.approx(expected)
    assert autoencoding_error(images, images, torch.zeros(2, 3), 0.1).tolist() == [0, 0]
    images.requires_grad_()
    decoded.requires_grad_()
    autoencoding_error(decoded, images, latents, 0.1).sum().backward()
    assert images.grad is None
    assert decoded.grad is not None


def test_encoder_decoder_and_classifier_do_not_change(run: Any, state_of: Any, changed: Any) -> None:
    training = run(epochs=2)
    manifold = trained_manifold(training, 4, 0.05, 1e-3, 1)
    networks = (manifold.decoder, manifold.classifier)
    for parameter in (parameter for network in networks for parameter in network.parameters()):
        parameter.grad = None  # of their own training
    before = [state_of(network) for network in networks]
    fit_student(training, training.student(), manifold, weight=1.0)
    for network, state in zip(networks, before, strict=True):
        assert changed(state, state_of(network)) == set()
        assert not any(module.training for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())


def test_the_method_is_its_two_parts(run: Any, state_of: Any, changed: Any) -> None:
    whole = run()
    student = find("omada")(whole, **BRIEF, weight=0.5)
    parts = run()
    other = parts.student()
    fit_student(parts, other, trained_manifold(run(), 4, 0.05, 1e-3, 1), weight=0.5, steps=3)
    assert changed(state_of(student), state_of(other)) == set()
    assert whole.notes == parts.notes
    assert {*whole.notes} == {
        "latent_accuracy", "latent_temperature", "crossed", "entropy_at_start", "entropy_at_peak"
    }  # fmt: skip
    assert [len(fit.history) for fit in whole.fits] == [1, 1, 1]


def test_weight_0_is_plain_training(run: Any, state_of: Any, changed: Any) -> None:
    assert changed(state_of(find("omada")(run(), **BRIEF, weight=0.0)), state_of(find("plain")(run()))) == set()


def test_samples_without_a_label_have_a_path(run: Any, tiny_data: Data) -> None:
    labels = tiny_data.train.labels.clone()
    labels[::2] = -1
    training = run(replace(tiny_data, train=replace(tiny_data.train, labels=labels)))
    manifold = trained_manifold(training, 4, 0.05, 1e-3, 1)
    paths = paths_of(training, manifold, steps=3, size=0.1, stop=0.9)
    assert paths.latents.shape == (48, 4, 4)
    assert paths.latents.isfinite().all()


def test_data_without_images_are_refused(on_cpu: Hardware, refused: Any) -> None:
    split = Split.of(torch.rand(20, 5), torch.arange(20) % 2, Vectors())
    data = Data("vectors", ("a", "b"), split, split)
    with refused("omada decodes images", "vectors"):
        find("omada")(Run(data, lambda: Tapped(mlp(2, 5, 8)), recipe=Recipe(epochs=1), hardware=on_cpu))


@pytest.mark.parametrize("settings", [{"weight": -1}, {"choice": "late"}, {"steps": -1}, {"latent": 0}, {"stop": 1.5}])
def test_invalid_settings_are_refused(settings: dict[str, Any], run: Any, refused: Any) -> None:
    ((name, value),) = settings.items()
    with refused(name, value):
        find("omada")(run(), **settings)


def digits(count: int, noise: float) -> Data:
    data = open_data("digits")
    generator = torch.Generator().manual_seed(0)

    def noisy(images: Any) -> Tensor:
        values = images / 255 + noise * torch.randn(images.shape, generator=generator)
        return (values.clamp(0, 1) * 255).round().to(torch.uint8)

    rows = torch.randperm(len(data.train), generator=generator)
    images, labels = noisy(data.train.inputs), data.train.labels
    train = Split.of(images[rows[:count]], labels[rows[:count]])
    test = Split.of(images[rows[count:]], labels[rows[count:]])
    return replace(data, train=train, test=test, views=data.modality.unaugmented)


def training_of(data: Data, epochs: int, hardware: Hardware) -> Run:
    recipe = Recipe(epochs=epochs, batch_size=50, lr=0.05)
    return Run(data, lambda: Tapped(mlp(10, 64, 128), *data.mean_std), recipe=recipe, hardware=hardware)


def test_confidence_falls_with_the_weight_and_paths_cross(on_cpu: Hardware) -> None:
    """The signed gap falls monotonically in the weight, and some weight has a better ECE than plain training."""
    data = digits(150, 0.2)
    manifold = trained_manifold(training_of(data, 1, on_cpu), 8, 0.1, 1e-3, 150)
    gaps, errors = [], []
    for weight in (0.0, 0.3, 1.0):
        training = training_of(data, 80, on_cpu)
        student = training.student()
        fit_student(training, student, manifold, weight=weight)
        logits = predict(student, data.test, device="cpu")
        gaps.append(float(calibration_gap(logits, data.test.labels)))
        errors.append(float(ece(logits, data.test.labels)))
    assert gaps[0] > 0.03  # over-confident without it
    assert gaps[0] > gaps[1] > gaps[2]
    assert min(errors[1:]) < errors[0]
    assert training.notes["crossed"] > 0.9
    assert training.notes["entropy_at_peak"] > training.notes["entropy_at_start"] + 0.2
    paths = paths_of(training, manifold, steps=20, size=0.05, stop=0.9)
    entropy = entropies(paths.labels).mean(0)
    assert entropy[:8].diff().mean() > 0  # rises towards the boundary


def test_reconstructions_are_recognised_by_another_classifier(on_cpu: Hardware) -> None:
    """An independent classifier keeps 95 % of its accuracy on G(E(x))."""
    data = digits(600, 0.0)
    classifier = find("plain")(training_of(data, 15, on_cpu))
    training = training_of(data, 1, on_cpu)
    autoencoder = trained_autoencoder(training, 16, 0.25, 1e-3, 40)
    with torch.no_grad():
        images = data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
        reconstructions = autoencoder(images)
    labels = data.test.labels
    real, reconstructed = (float((classifier(x).argmax(1) == labels).float().mean()) for x in (images, reconstructions))
    assert real > 0.9
    assert reconstructed > 0.95 * real
    assert latents_of(training, autoencoder, data.test).shape == (837, 16)
