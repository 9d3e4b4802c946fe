"""``Tapped(size=...)``: the filter of its resizing, gradients, copies that keep the size, and errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.models.networks import INPUTS, MEAN, STD
from tutelage.errors import TutelageError
from tutelage.models.generator import Generator
from tutelage.models.inputs import resize
from tutelage.models.networks.resnet import ResNet
from tutelage.models.tapped import Tapped

SIZES = [((6, 6), (9, 14)), ((14, 9), (5, 6)), ((8, 8), (4, 16)), ((5, 7), (1, 1)), ((3, 3), (3, 4))]


def loops(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The triangle filter in plain loops over each axis, with the filter as wide as the scale when it shrinks."""

    def matrix(source: int, target: int) -> Tensor:
        scale = source / target
        support = max(scale, 1.0)
        rows = torch.zeros(target, source, dtype=torch.float64)
        for i in range(target):
            centre = (i + 0.5) * scale
            for j in range(source):
                rows[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / support)
            rows[i] /= rows[i].sum()
        return rows

    down, across = matrix(images.shape[2], size[0]), matrix(images.shape[3], size[1])
    return torch.einsum("ih,bchw,jw->bcij", down, images.double(), across)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resizing_equals_a_triangle_filter_in_plain_loops(source: tuple[int, int], target: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *source, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(resize(images, target), loops(images, target))


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resizing_equals_pillows(source: tuple[int, int], target: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).random(source, dtype=np.float32)
    expected = np.asarray(Image.fromarray(plane).resize((target[1], target[0]), Image.Resampling.BILINEAR))
    torch.testing.assert_close(resize(torch.from_numpy(plane)[None, None], target)[0, 0], torch.tensor(expected))


def test_resized_pixels_stay_in_their_range_and_keep_a_constant() -> None:
    images = torch.rand(4, 3, 32, 32).round()
    for size in ((224, 224), (7, 9)):
        resized = resize(images, size)
        assert -1e-6 <= float(resized.min()) <= float(resized.max()) <= 1 + 1e-6
        torch.testing.assert_close(resize(torch.full((1, 1, 32, 32), 0.3), size), torch.full((1, 1, *size), 0.3))


def test_images_of_the_size_are_not_touched() -> None:
    assert resize(INPUTS, tuple(INPUTS.shape[2:])) is INPUTS  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(40, 24), (10, 12)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_of_a_size_equals_resizing_by_hand_before_it(
    size: tuple[int, int], layout: torch.memory_format
) -> None:
    """In training and evaluation, for outputs and features; the normalisation comes after the resizing."""
    torch.manual_seed(0)
    network = ResNet(8, 5)
    sized, plain = Tapped(network, MEAN, STD, size=size), Tapped(network, MEAN, STD)
    x = INPUTS.contiguous(memory_format=layout)
    by_hand = F.interpolate(x, size, mode="bilinear", antialias=True)
    roles = ("logits", "stem", "stage2", "embedding")
    for training in (False, True):
        network.train(training)
        first, second = sized.tap(x, roles), plain.tap(by_hand, roles)
        for role in roles:
            assert torch.equal(first[role], second[role])
        assert torch.equal(sized(x), plain(by_hand))
    assert first["stem"].shape[2:] == size
    by_parts = network((by_hand - torch.tensor(MEAN).view(1, -1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1))
    torch.testing.assert_close(sized(x), by_parts)


def test_gradients_pass_through_the_resizing() -> None:
    """To the images, as an attack needs them, and to the weights of a teacher that is trained."""
    torch.manual_seed(0)
    model = Tapped(ResNet(8, 5), MEAN, STD, size=(20, 20)).double().eval()
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    model(images).square().sum().backward()
    assert images.grad is not None
    direction = torch.randn_like(images)
    step = 1e-6 * direction
    with torch.no_grad():
        change = (model(images + step).square().sum() - model(images - step).square().sum()) / 2e-6
    assert float((images.grad * direction).sum()) == pytest.approx(float(change), rel=1e-4)
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert torch.autograd.gradcheck(
        lambda x: resize(x, (5, 3)), (torch.rand(1, 2, 3, 4, dtype=torch.float64).requires_grad_(),)
    )


def test_the_size_is_kept_by_copies_and_changed_by_with_size() -> None:
    model = Tapped(ResNet(8, 5), MEAN, STD, {"stage1": "layer1"}, size=(20, 20)).eval()
    x = INPUTS
    for other in (model.rewrapped(), model.with_roles({}), copy.deepcopy(model)):
        assert other.size == (20, 20)
        assert torch.equal(other(x), model(x))
    assert model.with_normalisation((0.0,), (1.0,)).size == (20, 20)
    changed = model.with_size((10, 10))
    assert (changed.size, changed.training, model.size) == ((10, 10), False, (20, 20))
    assert changed.has_normalisation(MEAN, STD)
    assert changed.manual_roles == model.manual_roles


def test_the_state_of_a_network_does_not_depend_on_the_size() -> None:
    network = ResNet(8, 5)
    assert list(Tapped(network, size=(20, 20)).state_dict()) == list(Tapped(network).state_dict())


def test_of_several_inputs_only_images_are_resized() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
            assert image.shape[2:] == (4, 4)
            return image.mean((2, 3)) + numbers

    numbers = torch.ones(2, 3)
    images = torch.rand(2, 3, 8, 8)
    output = Tapped(Two(), size=(4, 4))((images, numbers))
    torch.testing.assert_close(output, resize(images, (4, 4)).mean((2, 3)) + 1)


@pytest.mark.parametrize(
    "inputs", [torch.rand(2, 3), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 3, 4, 4).byte()]
)
def test_inputs_that_are_no_images_are_refused(inputs: Tensor, refused: Any) -> None:
    with refused("cannot be resized", tuple(inputs.shape), "(B, C, H, W)"):
        Tapped(nn.Identity(), size=(4, 4))(inputs)


@pytest.mark.parametrize("size", [224, (224,), (0, 4), (4, -1), (4, 2.5), (4, math.inf), ("4", "4"), (True, 4), "44"])
def test_invalid_sizes_are_refused(size: Any, refused: Any) -> None:
    with refused(f"size={size!r} is no image size", "(224, 224)"):
        Tapped(nn.Identity(), size=size)


def test_a_generator_has_nothing_to_resize() -> None:
    class Net(nn.Module):
        latent = 3

        def forward(self, z: Tensor) -> Tensor:
            return z.sigmoid().view(-1, 3, 1, 1)

    generator = Generator(Net())
    assert generator.with_size((8, 8)) is generator


def test_autocast_does_not_change_the_resized_pixels() -> None:
    seen: list[Tensor] = []
    model = Tapped(nn.Identity(), size=(5, 5))
    model.module.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model(INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        model(INPUTS)
    assert torch.equal(*seen)


def test_the_error_is_the_packages_own() -> None:
    with pytest.raises(TutelageError, match=r"\(B, C, H, W\)"):
        resize(torch.rand(3, 4), (2, 2))
