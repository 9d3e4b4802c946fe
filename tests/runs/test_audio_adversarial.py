"""The method audio_adversarial: on waveforms and on images, its loss, its file, its warning, and its effect."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from torch import nn

from tutelage.attacks import PGD, AdversarialSamples
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, Split, open_data
from tutelage.data.modality import Vectors, Waveforms
from tutelage.errors import TutelageWarning
from tutelage.evaluation import evaluate_attacks
from tutelage.methods import find
from tutelage.methods.audio_adversarial.fronts.sound_image import SoundImage
from tutelage.methods.audio_adversarial.images import image_data, image_network
from tutelage.models.networks.resnet import ResNet
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.tasks import evaluate
from tutelage.training import Run

BRIEF = {"size": 16}
RATE, LENGTH = 8000, 2000
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05)


def sounds(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tones, chirps, noise and clicks of random pitch and volume, (N, L) in [-1, 1), and their classes."""
    generator = torch.Generator().manual_seed(seed)
    t, waves = torch.arange(LENGTH) / RATE, []
    for number in range(count):
        hertz, volume, phase = torch.rand(3, generator=generator).tolist()
        base = 300 + 600 * hertz
        kinds = (
            torch.sin(2 * math.pi * (base * t + phase)),
            torch.sin(2 * math.pi * (base * t + 4 * base * t**2)),
            torch.randn(LENGTH, generator=generator) / 3,
            ((t * (20 + 20 * hertz) + phase) % 1 < 0.02).float(),
        )
        wave = (0.2 + 0.5 * volume) * kinds[number % 4] + 0.003 * torch.randn(LENGTH, generator=generator)
        waves.append(wave.clamp(-0.99, 0.99))
    return torch.stack(waves), torch.arange(count) % 4


@pytest.fixture(scope="module")
def waveforms() -> Data:
    def part(count: int, seed: int) -> Split:
        waves, labels = sounds(count, seed)
        return Split.of((2**15 * waves).to(torch.int16), labels, modality=Waveforms(RATE))

    return Data("sounds", ("tone", "chirp", "noise", "click"), part(64, 1), part(32, 2), part(32, 3))


def resnet(data: Data) -> Callable[[], Tapped]:
    def make() -> Tapped:
        with torch.random.fork_rng():
            torch.manual_seed(4)
            return Tapped(ResNet(8, 4, 1, width=0.5), *data.mean_std)

    return make


def test_with_clean_images_alone_it_is_plain_training_on_the_images(
    waveforms: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """Bit for bit."""
    run = Run(waveforms, resnet(waveforms), recipe=RECIPE, hardware=on_cpu, seed=1)
    student = find("audio_adversarial")(run, representation="stft", size=16, clean=1.0)
    images = image_data(waveforms, SoundImage("stft", tonal=True, rate=RATE, size=16))
    plain = find("plain")(Run(images, resnet(images), recipe=RECIPE, hardware=on_cpu, seed=1))
    assert changed(state_of(plain.module), state_of(image_network(student).module)) == set()
    assert image_network(student).mean.item() == pytest.approx(images.mean_std[0][0])
    assert student.mean.item() == pytest.approx(waveforms.mean_std[0][0])


def test_the_loss_is_the_mixture_and_radius_0_is_plain_training(tiny_data: Data, on_cpu: Hardware) -> None:
    """Without batch normalisation, whose statistics a second pass would update."""

    def weights(method: str, **settings: Any) -> torch.Tensor:
        torch.manual_seed(0)
        network = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
        data = replace(tiny_data, views=CropsAndFlips())
        return find(method)(Run(data, lambda: network, recipe=RECIPE, hardware=on_cpu), **settings).module[1].weight

    plain = weights("plain")
    torch.testing.assert_close(weights("audio_adversarial", radius=0.0), plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights("audio_adversarial", clean=1.0), plain, rtol=0, atol=0)
    assert (weights("audio_adversarial", radius=0.1) - plain).abs().max() > 1e-3
    assert (weights("audio_adversarial", radius=0.1, clean=0.0) - plain).abs().max() > 1e-3


def test_its_terms_are_cross_entropies_on_clean_and_attacked_images(
    tiny_data: Data, on_cpu: Hardware, monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    views: list[AdversarialSamples] = []
    original = AdversarialSamples.__init__

    def record(self: AdversarialSamples, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        views.append(self)

    monkeypatch.setattr(AdversarialSamples, "__init__", record)
    for steps, expected in ((1, (0.1, 0.1, 1, False)), (5, (0.1, 0.05, 5, True))):
        run = Run(tiny_data, tiny_model, recipe=Recipe(epochs=1, batch_size=16), hardware=on_cpu)
        find("audio_adversarial")(run, radius=0.1, steps=steps)
        view = views.pop()
        assert (view.radius, view.step_size, view.steps, view.random_start) == expected
        assert view.clamp
        assert set(run.fits[0].history[0]["learners"]["student"]) >= {"clean", "attacked"}
        assert 0 <= run.notes["pgd_accuracy"] <= 1


def test_a_student_robust_to_single_steps_alone_gives_a_warning(
    tiny_data: Data, on_cpu: Hardware, monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    module = find("audio_adversarial").function.__globals__
    for gap, count in ((0.35, 3), (0.25, 0)):
        monkeypatch.setitem(module, "_accuracies", lambda *_, gap=gap: (0.4 + gap, 0.4))
        run = Run(tiny_data, tiny_model, recipe=Recipe(epochs=3, batch_size=16), hardware=on_cpu)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            find("audio_adversarial")(run)
        texts = [str(entry.message) for entry in caught if issubclass(entry.category, TutelageWarning)]
        assert len(texts) == count
        assert all("withstand FGSM" in text and "steps=7" in text for text in texts)


def test_the_result_takes_waveforms_and_is_saved_with_its_front(tmp_path: Path, waveforms: Data) -> None:
    for name, split in {"train": waveforms.train, "test": waveforms.test}.items():
        for i, (wave, label) in enumerate(zip(split.inputs, split.labels.tolist(), strict=True)):  # type: ignore[arg-type]
            path = tmp_path / "data" / name / str(label) / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wavfile.write(path, RATE, np.asarray(wave))
    config = Config(
        data=f"wav:{tmp_path / 'data'}", student="resnet8x0.25", method="audio_adversarial",
        settings={"size": 16, "representation": "mfcc"}, epochs=1, batch_size=16, device="cpu", precision="float32",
        channels_last=False, workers=0,
    )  # fmt: skip
    result = execute(config, tmp_path / "run")
    data = open_data(f"wav:{tmp_path / 'data'}")
    opened = open_model(str(tmp_path / "run"), data)
    (operation,) = applied_operations(opened.module)
    assert (operation["kind"], operation["representation"], operation["rate"]) == ("sound_image", "mfcc", RATE)
    waves = sounds(5)[0][:, None]
    assert torch.equal(opened(waves), result.model.eval()(waves))
    assert evaluate(opened, data)["accuracy"] == result.metrics["test"]["accuracy"]
    assert set(result.metrics["notes"]) == {"fgsm_accuracy", "pgd_accuracy"}


def test_only_waveforms_and_images_are_accepted(on_cpu: Hardware, refused: Any) -> None:
    vectors = Split.of(torch.rand(16, 8), torch.arange(16) % 2, modality=Vectors())
    data = Data("vectors", ("a", "b"), vectors, vectors, vectors, Vectors.unaugmented)
    run = Run(data, lambda: Tapped(nn.Linear(8, 2)), recipe=Recipe(epochs=1), hardware=on_cpu)
    with refused("needs images", "vectors"):
        find("audio_adversarial")(run)
    short = Split.of(torch.zeros(8, 100, dtype=torch.int16), torch.arange(8) % 2, modality=Waveforms(RATE))
    data = Data("short", ("a", "b"), short, short)
    run = Run(data, resnet(data), recipe=Recipe(epochs=1), hardware=on_cpu)
    with refused("waveforms of 100 samples are too short"):
        find("audio_adversarial")(run)


def test_it_withstands_attacks_that_plain_training_does_not(waveforms: Data, on_cpu: Hardware) -> None:
    """Images of sounds, one seed: clean accuracy is kept, and the accuracy under PGD rises much."""
    accuracies = {}
    for name, settings in {"plain": {"clean": 1.0}, "adversarial": {"steps": 3, "clean": 0.3}}.items():
        recipe = Recipe(epochs=25, batch_size=16, lr=0.05)
        run = Run(waveforms, resnet(waveforms), recipe=recipe, hardware=on_cpu, seed=2)
        student = find("audio_adversarial")(run, representation="stft", size=16, radius=0.06, **settings)
        images = image_data(waveforms, SoundImage("stft", tonal=True, rate=RATE, size=16))
        report = evaluate_attacks(
            image_network(student).eval(), images.test, {"pgd": PGD(radius=0.06, steps=20, loss="margin")}
        )
        accuracies[name] = (report.clean, report.results["pgd"].accuracy)
        found_share = report.as_json()["attack_measures"]["pgd"]["found"]  # the fooling rate, of the correct clips
        broken = report.results["pgd"].success & report.correct
        assert found_share == pytest.approx(int(broken.sum()) / int(report.correct.sum()))
    assert accuracies["plain"][0] > 0.9
    assert accuracies["adversarial"][0] > 0.9
    assert accuracies["adversarial"][1] > accuracies["plain"][1] + 0.2
