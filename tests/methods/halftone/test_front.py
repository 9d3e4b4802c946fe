"""The halftone front: operators, training, normalisation, surrogate gradients, and files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.attacks import PGD, Square, input_gradient, without_gradient
from tutelage.evaluation import evaluate_attacks
from tutelage.methods.halftone.diffusion import KERNELS, diffused, nearest_level
from tutelage.methods.halftone.fronts.halftone import Halftone, bayer_matrix, blurred, build
from tutelage.models.random_state import is_random
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.surgery.front import apply
from tutelage.models.tapped import Tapped
from tutelage.models.weights import load_weights, save_weights

Refused = Callable[..., AbstractContextManager[None]]
PLAIN: dict[str, Any] = {"mean": [0.0], "std": [1.0]}


def pixels(*shape: int) -> Tensor:
    return torch.rand(*(shape or (6, 1, 8, 8)), generator=torch.Generator().manual_seed(0))


def front(**settings: Any) -> Halftone:
    example = pixels(2, len(settings.get("mean", [0])), 8, 8)
    return build(example, **{**PLAIN, **settings}).eval()


@pytest.mark.parametrize("operator", ["floyd_steinberg", "jarvis", "bayer", "random"])
@pytest.mark.parametrize("levels", [2, 4])
def test_every_operator_gives_the_levels_at_the_density_of_the_grey_value(operator: str, levels: int) -> None:
    torch.manual_seed(0)
    grey = (torch.arange(0, 11) / 10).view(11, 1, 1, 1)
    dots = front(operator=operator, levels=levels)(grey.expand(11, 1, 64, 64))
    steps = dots * (levels - 1)
    torch.testing.assert_close(steps, steps.round())
    assert dots.unique().numel() == levels
    assert (dots.mean((1, 2, 3)) - grey.flatten()).abs().max() < 0.03
    assert dots[0].max() == 0
    assert dots[10].min() == 1


def test_the_ordered_dither_is_the_threshold_of_the_card() -> None:
    """The Bayer matrix of order 8 by its closed form: the bits of i xor j and i, reversed and interleaved."""
    matrix = bayer_matrix(3)
    expected = [
        [sum((((i ^ j) >> bit & 1) * 2 + (i >> bit & 1)) << 2 * (2 - bit) for bit in range(3)) for j in range(8)]
        for i in range(8)
    ]
    assert sorted(matrix.flatten().tolist()) == list(range(64))
    assert matrix[:2, :2].tolist() == [[0, 32], [48, 16]]
    assert matrix.tolist() == expected
    levels = (pixels(1, 1, 13, 11) * 255).round() / 255
    tiles = ((matrix + 0.5) / 64).repeat(2, 2)[:13, :11]
    assert torch.equal(front(operator="bayer")(levels), (levels > tiles).float())


def test_the_random_threshold_is_drawn_for_each_pixel_and_pass() -> None:
    layer, images = front(operator="random"), torch.full((4, 2, 16, 16), 0.5)
    torch.manual_seed(1)
    first, second = layer(images), layer(images)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert is_random(nn.Sequential(layer))
    assert not is_random(nn.Sequential(front()))


def test_it_halftones_pixels_and_returns_them_normalised() -> None:
    mean, std = [0.2, 0.5, 0.7], [0.1, 0.2, 0.4]
    images = pixels(4, 3, 8, 8)
    shift, scale = (torch.tensor(part)[:, None, None] for part in (mean, std))
    result = front(mean=mean, std=std)((images - shift) / scale)
    expected, _ = diffused(images, KERNELS["floyd_steinberg"], nearest_level)
    torch.testing.assert_close(result * scale + shift, expected)


def test_repeated_pixels() -> None:
    images = pixels(2, 1, 4, 5)
    enlarged = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    result = front(factor=3)(images)
    assert result.shape == (2, 1, 12, 15)
    assert torch.equal(result, front()(enlarged))
    assert torch.equal(front(factor=3).enlarged(images), enlarged)


def test_which_images_are_halftoned_in_training() -> None:
    images = pixels()
    dots = front()(images)
    for training, rows in {"halftone": range(6), "hybrid": (0, 2, 4), "plain": ()}.items():
        layer = front(training=training)
        assert torch.equal(layer(images), dots)
        result = layer.train()(images)
        for row in range(6):
            assert torch.equal(result[row], (dots if row in rows else images)[row]), (training, row)


def test_one_level_of_noise_changes_dots_downstream() -> None:
    """The pattern is chaotic: a classifier of dots sees other dots at the smallest change of the image."""
    images = pixels(20, 1, 28, 28)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    changed = front()((images + (2 * noise - 1) / 255).clamp(0, 1)) != front()(images)
    assert changed.float().mean() > 0.02
    moved = images.clone()
    moved[:, :, 0, 0] = 1 - moved[:, :, 0, 0]
    assert (front()(moved) != front()(images))[:, :, 5:].any()


# --- gradients


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def defended(**settings: Any) -> nn.Module:
    return apply(classifier(), pixels(), kind="halftone", **{**PLAIN, **settings}).eval()


def test_without_a_surrogate_no_image_has_a_gradient_and_the_accuracy_is_refused(tiny_data: Any) -> None:
    model, images = defended(), pixels()
    labels = model(images).argmax(1)
    assert without_gradient(model, images, labels, bpda="none").all()
    assert not without_gradient(model, images, labels).any()
    report = evaluate_attacks(
        Tapped(apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), pixels(), kind="halftone", **PLAIN)),
        tiny_data.test,
        ["pgd:0.1:bpda=none", "pgd:0.1"],
        workers=0,
    )
    assert "100%" in report.results["pgd:0.1:bpda=none"].refusal
    assert "bpda=declared" in report.results["pgd:0.1:bpda=none"].refusal
    assert not report.results["pgd:0.1"].refusal


@pytest.mark.parametrize("factor", [1, 2])
def test_surrogates_have_the_gradients_they_name(factor: int) -> None:
    images, layer = pixels().double(), front(factor=factor)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), classifier()).double()
    labels = torch.zeros(6, dtype=torch.int64)
    model = nn.Sequential(layer, network)
    dots = layer(images)
    _, at_dots = input_gradient(network, dots, labels)
    for name, function in layer.surrogates.items():
        _, gradient = input_gradient(model, images, labels, bpda=name)
        leaf = images.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf), leaf, at_dots)
        torch.testing.assert_close(gradient, expected)
        assert gradient.abs().min() >= 0
    _, identity = input_gradient(model, images, labels, bpda="identity")
    pooled = torch.nn.functional.avg_pool2d(at_dots, factor) * factor**2
    torch.testing.assert_close(identity, pooled)


def test_the_blur_preserves_constants_and_equals_the_formula() -> None:
    constant = torch.full((1, 2, 9, 9), 0.37, dtype=torch.float64)
    torch.testing.assert_close(blurred(constant, 1.0), constant)
    point = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    point[0, 0, 7, 7] = 1
    offsets = torch.arange(-3, 4, dtype=torch.float64)
    weights = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / 2)
    torch.testing.assert_close(blurred(point, 1.0)[0, 0, 4:11, 4:11], weights / weights.sum())


def test_bpda_and_queries_break_what_plain_gradients_do_not() -> None:
    """A linear classifier of the density: the surrogate's gradient is as good as that of the bare network."""
    torch.manual_seed(0)
    head = nn.Linear(1, 2)
    head.weight.data, head.bias.data = torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, 0.5])
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model = nn.Sequential(front(), bare)
    images = 0.56 + 0.02 * pixels(20, 1, 32, 32)
    labels = model(images).argmax(1)
    assert (labels == 0).all()
    for attack, broken in ((PGD(radius=0.1), 1.0), (PGD(radius=0.1, bpda="none"), 0.0)):
        broken_ones = model(attack(model, images, labels, torch.Generator().manual_seed(0))).argmax(1) != labels
        assert float(broken_ones.float().mean()) == broken
    square = Square(radius=0.1, queries=200)(model, images, labels, torch.Generator().manual_seed(0))
    assert (model(square).argmax(1) != labels).float().mean() > 0.4


# --- files and settings


@pytest.mark.parametrize("operator", ["jarvis", "bayer"])
def test_it_is_rebuilt_from_a_file(operator: str, tiny_model: Callable[..., Tapped], tmp_path: Path) -> None:
    settings = {**PLAIN, "operator": operator, "levels": 3, "factor": 2, "serpentine": 1, "training": "hybrid"}
    network = apply(tiny_model(3).module, pixels(), kind="halftone", **settings).eval()
    save_weights(tmp_path / "w.safetensors", network, {"surgery": applied_operations(network)})
    rebuilt = reapply(tiny_model(5).module, applied_operations(network), pixels())
    load_weights(tmp_path / "w.safetensors", rebuilt)
    assert torch.equal(rebuilt.eval()(pixels()), network(pixels()))


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"operator": "dots"}, ["halftoning operator", "dots", "bayer"]),
        ({"training": "both"}, ["training of the halftone", "both", "hybrid"]),
        ({"levels": 1}, ["levels", "from 2 to 256", "1"]),
        ({"levels": 2.5}, ["levels", "2.5"]),
        ({"factor": 0}, ["factor", "from 1 to 16", "0"]),
        ({"mean": [0.1, 0.2]}, ["mean", "1 finite numbers"]),
        ({"std": [float("nan")]}, ["std", "finite"]),
        ({"std": [0.0]}, ["std", "positive"]),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], pieces: list[str], refused: Refused) -> None:
    with refused(*pieces):
        build(pixels(), **{**PLAIN, **settings})


def test_inputs_other_than_images_are_refused(refused: Refused) -> None:
    with refused("only images", "(6,)"):
        build(torch.rand(2, 6), **PLAIN)
