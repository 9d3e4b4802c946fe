"""The front that makes images of waveforms, the data of images, and the networks for attacks on both domains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.attacks import PGD
from tutelage.data import Data, Split
from tutelage.data.modality import Pixels, Waveforms
from tutelage.methods.audio_adversarial.fronts.sound_image import SoundImage, build, scaled
from tutelage.methods.audio_adversarial.images import (
    WaveformNetwork,
    front_of,
    image_data,
    image_network,
    signal_to_noise,
)
from tutelage.models.networks.resnet import ResNet
from tutelage.models.surgery.front import apply
from tutelage.models.tapped import Tapped

RATE, LENGTH = 8000, 4000
KINDS = ["stft", "mfcc", "scalogram", "db4"]
SETTINGS: dict[str, Any] = {
    "representation": "stft", "tonal": True, "rate": RATE, "size": 16, "mean": 0.1, "std": 0.5, "image_mean": 0.3,
    "image_std": 0.2,
}  # fmt: skip


def image_of(kind: Any, *, tonal: bool = True, size: int = 32) -> SoundImage:
    return SoundImage(kind, tonal=tonal, rate=RATE, size=size)


def clips(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(LENGTH) / RATE
    hertz = 200 + 400 * torch.rand(count, 1, 1, generator=generator)
    return 0.3 * torch.sin(2 * math.pi * hertz * t) + 0.02 * torch.randn(count, 1, LENGTH, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_an_impulse_is_in_the_same_column_of_every_block(kind: str) -> None:
    for column in (3, 9, 14):
        waves = torch.zeros(1, LENGTH)
        waves[0, 200 * column] = 0.5
        blocks = image_of(kind).blocks(waves)
        assert {block.shape[2] for block in blocks} == {1 + LENGTH // 200}
        first = blocks[0][:, :1] if kind == "mfcc" else blocks[0]  # of the cepstrum, the coefficient of loudness
        assert abs(int(scaled(first)[0].sum(0).argmax()) - column) <= (0 if kind in ("scalogram", "db4") else 2)
        centre = scaled(first)[0].sum(0)
        times = torch.arange(len(centre), dtype=torch.float32)
        inside = (centre - centre.min()).clamp(min=0) ** 2
        assert float((inside * times).sum() / inside.sum()) == pytest.approx(column, abs=0.5)


@pytest.mark.parametrize("tonal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_in_the_unit_range_and_differentiable(kind: str, tonal: bool) -> None:
    front = image_of(kind, tonal=tonal)
    waves = clips().requires_grad_()
    images = front(waves)
    assert images.shape == (3, 1, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    (gradient,) = torch.autograd.grad(images[:, :, ::3, ::5].sum(), waves)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    rows = [block.shape[1] for block in front.blocks(waves[:, 0])]
    assert rows[1:] == ([12, 6] if tonal else [])


@pytest.mark.parametrize("kind", KINDS)
def test_silence_has_an_image_and_finite_gradients(kind: str) -> None:
    waves = torch.zeros(2, 1, LENGTH, requires_grad=True)
    images = image_of(kind)(waves)
    assert images.isfinite().all()
    (gradient,) = torch.autograd.grad(images.sum(), waves)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["stft", "scalogram", "mfcc"])
def test_each_clip_is_scaled_by_itself(kind: str) -> None:
    """The image of a clip does not depend on the batch, and that of decibels not on the volume."""
    front = image_of(kind, tonal=False)
    torch.testing.assert_close(front(clips())[:1], front(clips()[:1]), rtol=0, atol=1e-5)
    if kind == "stft":
        torch.testing.assert_close(front(clips()), front(0.5 * clips()), rtol=0, atol=1e-3)


def test_scaling_maps_each_block_to_the_unit_range() -> None:
    block = torch.tensor([[[2.0, 4.0], [3.0, 6.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert scaled(block).tolist() == [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]


def test_decibels_are_clipped_80_below_the_largest() -> None:
    front = image_of("stft", tonal=False)
    block = front.blocks(clips()[:, 0])[0]
    assert block.amax() == 0
    assert block.amin() == -80


# --- data and networks


@pytest.fixture
def sounds() -> Data:
    """32 and 8 tones of two pitches."""

    def part(count: int) -> Split:
        labels = torch.arange(count) % 2
        t = torch.arange(LENGTH) / RATE
        hertz = (300 + 500 * labels + 20 * torch.rand(count))[:, None]
        waves = 0.4 * torch.sin(2 * math.pi * hertz * t) + 0.01 * torch.randn(count, LENGTH)
        return Split.of((2**15 * waves).to(torch.int16), labels, modality=Waveforms(RATE))

    torch.manual_seed(3)
    return Data("tones", ("low", "high"), part(32), part(8), part(8))


def test_the_data_of_images_keep_labels_and_order(sounds: Data) -> None:
    front = image_of("stft")
    images = image_data(sounds, front)
    assert isinstance(images.modality, Pixels)
    assert images.train.inputs.shape == (32, 32, 32, 1)
    assert set(images.splits) == {"train", "validation", "test"}
    for name, split in sounds.splits.items():
        assert torch.equal(images.splits[name].labels, split.labels)
        waves = split.inputs[:4, None].float() / 2**15  # type: ignore[index]
        stored = images.splits[name].inputs[:4].permute(0, 3, 1, 2) / 255  # type: ignore[index,union-attr]
        assert (stored - front.images(waves)).abs().max() <= 0.5 / 255 + 1e-5


@pytest.fixture
def network() -> Tapped:
    torch.manual_seed(0)
    model = Tapped(ResNet(8, 2, 1, width=0.25), (0.1,), (0.5,))
    apply(model.module, clips(), kind="sound_image", **SETTINGS)
    return model.rewrapped().eval()


def test_the_front_removes_one_normalisation_and_applies_another(network: Tapped) -> None:
    inside = image_network(network)
    images = image_of("stft", size=16).images(clips())
    torch.testing.assert_close(network(clips()), inside(images), rtol=1e-4, atol=1e-4)
    assert inside.mean.item() == pytest.approx(0.3)
    assert inside.std.item() == pytest.approx(0.2)
    front_of(network.module)  # the network itself still has it


def test_waveforms_are_attacked_within_their_amplitude(network: Tapped) -> None:
    """The outputs are those of the network; a radius of 0.01 for [0, 1] is an amplitude of 0.02."""
    wrapped = WaveformNetwork(network).eval()
    inputs = (clips() + 1) / 2
    torch.testing.assert_close(wrapped(inputs), network(clips()), rtol=1e-3, atol=1e-3)
    labels = network(clips()).argmax(1)
    attack = PGD(radius=0.01, steps=5, loss="margin")
    assert not attack.blind(wrapped, inputs, labels).any()
    attacked = 2 * attack(wrapped, inputs, labels, torch.Generator().manual_seed(0)) - 1
    assert (attacked - clips()).abs().max() <= 0.02 + 1e-6
    snr = signal_to_noise(clips(), attacked)
    assert ((snr > 10) & (snr < 60)).all()


def test_the_clip_has_the_gradient_of_the_identity(network: Tapped) -> None:
    clip = front_of(WaveformNetwork(network))[1].clip
    values = torch.tensor([-100.0, -50.0], requires_grad=True)
    assert clip(values).tolist() == [-80.0, -50.0]
    assert torch.autograd.grad(clip(values).sum(), values)[0].tolist() == [1.0, 1.0]


def test_signal_to_noise_by_hand() -> None:
    waves = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    perturbed = waves + torch.tensor([[[0.5, 0.0]], [[0.0, 0.05]]])
    torch.testing.assert_close(signal_to_noise(waves, perturbed), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "changes", "pieces"),
    [
        ((2, 1, 8, 8), {}, ["only waveforms", "(1, 8, 8)"]),
        ((2, 1, 100), {}, ["100 samples", "256"]),
        ((2, 1, 4000), {"representation": "dwt"}, ["stft, mfcc, scalogram, db4", "dwt"]),
        ((2, 1, 4000), {"rate": 100}, ["rate of 1000", "100"]),
        ((2, 1, 4000), {"size": 4}, ["size of 8", "4"]),
        ((2, 1, 4000), {"image_std": 0.0}, ["above 0"]),
    ],
)
def test_invalid_settings_raise(shape: Any, changes: dict[str, Any], pieces: list[str], refused: Any) -> None:
    with refused(*pieces):
        build(torch.zeros(shape), **(SETTINGS | changes))


def test_a_network_without_a_front_raises(refused: Any, tiny_model: Callable[..., Tapped]) -> None:
    with refused("has no front that makes images"):
        image_network(tiny_model())


def test_settings_are_frozen_in_the_file(network: Tapped) -> None:
    from tutelage.models.surgery import applied_operations, reapply

    torch.manual_seed(5)
    other = Tapped(reapply(ResNet(8, 2, 1, width=0.25), applied_operations(network.module), clips()), (0.1,), (0.5,))
    other.module.load_state_dict(network.module.state_dict())
    assert torch.equal(other.eval()(clips()), network(clips()))
    assert not [key for key in network.module.state_dict() if "front" in key]  # it has no weights
