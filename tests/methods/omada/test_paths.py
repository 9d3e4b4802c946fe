"""Latent paths: the straight line of a linear classifier, the crossing, entropies, and the choice of points."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.split import Split
from tutelage.methods.omada.paths import CHOICES, OnManifold, Paths, boundary, early, entropies, latent_paths, uniform
from tutelage.models.outputs import Outputs
from tutelage.terms.cross_entropy import cross_entropy


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer.requires_grad_(False)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.BatchNorm1d(32), nn.Linear(32, 3)).double()
        layers(torch.randn(50, 4).double())
    return layers.eval().requires_grad_(False)


START = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGETS = torch.arange(20) % 3


def test_a_linear_classifier_has_a_straight_path_along_the_weight_difference() -> None:
    """The crossing is |w z_0 + b| / ||w|| away, where the soft label is (1/2, 1/2) with entropy log 2."""
    weight, bias = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 1.0, 0.5]]).double(), torch.tensor([0.3, -0.4]).double()
    w, b = weight[1] - weight[0], bias[1] - bias[0]
    start = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    distance = float((w @ start[0] + b).abs() / w.norm())
    size = distance / 8
    paths = latent_paths(linear(weight, bias), start, torch.tensor([1]), steps=16, size=size, stop=1.0)
    steps = torch.arange(17, dtype=torch.float64)[:, None]
    torch.testing.assert_close(paths.latents[0], start + steps * size * w / w.norm())
    torch.testing.assert_close(paths.labels[0, 8], torch.full((2,), 0.5, dtype=torch.float64))
    assert float(entropies(paths.labels[0, 8])) == pytest.approx(math.log(2))
    assert entropies(paths.labels[0]).argmax() == 8
    assert paths.labels[0].argmax(1).tolist()[:8] == [0] * 8
    assert paths.labels[0].argmax(1).tolist()[9:] == [1] * 8
    rise = entropies(paths.labels[0]).diff()
    assert (rise[:8] > 0).all()
    assert (rise[8:] < 0).all()


def test_soft_labels_sum_to_1_and_the_target_becomes_more_probable() -> None:
    paths = latent_paths(network(), START, TARGETS, steps=30, size=0.02, stop=1.0)
    torch.testing.assert_close(paths.labels.sum(2), torch.ones(20, 31, dtype=torch.float64))
    target = paths.labels.gather(2, TARGETS[:, None, None].expand(20, 31, 1)).squeeze(2)
    assert target.diff(dim=1).min() > -1e-9


def test_steps_follow_the_gradient_and_have_their_size() -> None:
    classifier = network()
    paths = latent_paths(classifier, START, TARGETS, steps=3, size=0.1, stop=1.0)
    point = START
    for number in range(3):
        for row in range(20):  # by central differences
            gradient = []
            for axis in range(4):
                offset = 1e-5 * torch.eye(4, dtype=torch.float64)[axis]
                high, low = (
                    F.cross_entropy(classifier(point[row : row + 1] + sign * offset), TARGETS[row : row + 1])
                    for sign in (1, -1)
                )
                gradient.append(float(high - low) / 2e-5)
            direction = torch.tensor(gradient, dtype=torch.float64)
            expected = point[row] - 0.1 * direction / direction.norm()
            torch.testing.assert_close(paths.latents[row, number + 1], expected, atol=1e-6, rtol=0)
        point = paths.latents[:, number + 1]


def test_a_path_ends_at_the_target_probability_and_stays_within_the_limit() -> None:
    paths = latent_paths(network(), START, TARGETS, steps=40, size=0.2, stop=0.4, limit=2.5)
    target = paths.labels.gather(2, TARGETS[:, None, None].expand(20, 41, 1)).squeeze(2)
    assert (paths.length < 40).any()
    for row, end in enumerate(paths.length.tolist()):
        assert (target[row, :end] < 0.4).all()
        assert end == 40 or target[row, end] >= 0.4
        assert (paths.latents[row, end:] == paths.latents[row, end]).all()
    assert paths.latents[:, 1:][START.norm(dim=1) <= 2.5].norm(dim=2).max() <= 2.5 + 1e-9


def test_without_steps_a_path_is_its_start() -> None:
    sharp = linear(50 * torch.eye(3, 4).double(), torch.zeros(3).double())
    paths = latent_paths(sharp, START, TARGETS, steps=0, size=0.1)
    assert torch.equal(paths.latents[:, 0], START)
    assert paths.length.tolist() == [0] * 20
    assert paths.labels[:, 0].amax(1).median() > 0.99  # near one-hot
    for choice in CHOICES.values():
        assert (choice(paths) > 0).all()


def test_the_classifier_stays_in_its_mode_and_gets_no_gradient() -> None:
    classifier = network().train()
    for parameter in classifier.parameters():
        parameter.requires_grad_(True)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    latent_paths(classifier, START, TARGETS, steps=3, size=0.1)
    assert classifier.training
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())


LABELS = torch.tensor(
    [[[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.7, 0.3]]]
)
PATHS = Paths(torch.arange(8.0).view(2, 4, 1), LABELS, torch.tensor([3, 2]))


def test_weights_of_the_points() -> None:
    assert uniform(PATHS).tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert early(PATHS).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]  # also not after a return
    weights = boundary(PATHS)
    expected = [-sum(p * math.log(p) for p in s) for s in LABELS[0].tolist()]
    assert weights[0].tolist() == pytest.approx(expected)
    assert weights[0].argmax() == 2
    assert weights[1, 3] == 0


def test_entropy_of_one_hot_and_uniform_labels() -> None:
    assert entropies(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0, math.log(2)])


def view(weights: Tensor) -> OnManifold:
    split = Split.of(torch.zeros(2, 2, 2, 1, dtype=torch.uint8), torch.tensor([0, 1]))
    decoder = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Unflatten(1, (1, 2, 2)))
    nn.init.ones_(decoder[0].weight)  # type: ignore[arg-type]
    return OnManifold(split, PATHS, weights, decoder)


def test_points_are_drawn_by_their_weights_and_decoded() -> None:
    torch.manual_seed(0)
    index = torch.tensor([1, 0]).repeat(4000)
    batch = Batch(torch.rand(8000, 1, 2, 2), torch.zeros(8000).long(), index, None)
    weights = torch.tensor([[1.0, 2, 0, 1], [0, 0, 1, 0]])
    derived = view(weights)(batch, Outputs(None), None)
    assert derived.inputs.shape == (8000, 1, 2, 2)
    points = derived.inputs[:, 0, 0, 0]
    assert (points[index == 1] == 6).all()
    shares = torch.bincount(points[index == 0].long(), minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.5, 0, 0.25]), atol=0.03, rtol=0)
    expected = LABELS.view(8, 2)[points.long()]
    torch.testing.assert_close(derived.targets, expected, atol=1e-3, rtol=0)  # float16
    torch.testing.assert_close(derived.targets.sum(1), torch.ones(8000))
    assert derived.index is batch.index


def test_soft_cross_entropy_of_one_hot_labels_and_its_minimum() -> None:
    logits = START[:, :3]
    one_hot = F.one_hot(TARGETS, 3).double()
    torch.testing.assert_close(cross_entropy(logits, one_hot), F.cross_entropy(logits, TARGETS, reduction="none"))
    soft = logits.softmax(1)
    at_minimum = cross_entropy(soft.log(), soft)
    torch.testing.assert_close(at_minimum, entropies(soft))
    assert (cross_entropy(soft.log() + 0.1 * START[:, 1:], soft) >= at_minimum).all()
