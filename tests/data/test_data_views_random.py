"""Random views of photographs: they replay, and the steps do not disturb each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.data import ColourJitter, RandAugment, RandomErasing, RandomResizedCrop, RandomViews
from tutelage.data.views.draws import Draws
from tutelage.data.views.random_views import standard, strong

EVERYTHING = RandomViews(steps=(ColourJitter(), RandAugment(), RandomErasing()))
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype=np.uint8))


def test_a_view_of_a_sample_is_always_the_same_image_whatever_the_batch():
    view, index = torch.arange(1, 9), torch.arange(8) * 3
    whole = EVERYTHING(IMAGES, view, index)
    order = torch.tensor([5, 2, 2, 7])
    assert torch.equal(EVERYTHING(IMAGES[order], view[order], index[order]), whole[order])
    assert whole.shape == IMAGES.shape
    assert whole.dtype == torch.uint8


def test_views_and_samples_differ():
    same = IMAGES[:1].expand(8, -1, -1, -1)
    ones = torch.ones(8, dtype=torch.int64)
    for view, index in ((torch.arange(1, 9), ones), (ones, torch.arange(8))):
        assert len(EVERYTHING(same, view, index).flatten(1).unique(dim=0)) == 8


def test_view_0_is_the_image():
    view = torch.tensor([0, 1, 0, 2, 3, 0, 4, 0])
    augmented = EVERYTHING(IMAGES, view, torch.arange(8))
    assert EVERYTHING.identity == 0
    assert torch.equal(augmented[view == 0], IMAGES[view == 0])
    assert not torch.equal(augmented[view != 0], IMAGES[view != 0])


def test_another_step_does_not_change_crops_or_earlier_steps():
    view, index = torch.arange(1, 9), torch.arange(8)
    cropped = RandomViews()(IMAGES, view, index)
    jittered = RandomViews(steps=(ColourJitter(),))(IMAGES, view, index)
    erasing = RandomErasing(probability=1.0)
    assert torch.equal(ColourJitter()(cropped, Draws.of(view, index, 1)), jittered)
    both = RandomViews(steps=(ColourJitter(), erasing))(IMAGES, view, index)
    assert torch.equal(erasing(jittered, Draws.of(view, index, 2)), both)


def test_a_limit_is_the_first_views_and_settings_identify_the_parameters():
    few = EVERYTHING.limited(4)
    assert few.count == 4
    view, index = torch.arange(4), torch.arange(4)
    assert torch.equal(few(IMAGES[:4], view, index), EVERYTHING(IMAGES[:4], view, index))
    settings = few.settings()
    assert json.loads(json.dumps(settings)) == settings
    others = [EVERYTHING, RandomViews(), RandomViews(crop=None), RandomViews(RandomResizedCrop(scale=(0.5, 1))), few]
    others += [RandomViews(steps=(RandAugment(magnitude=m),)) for m in (1, 2)]
    assert len({json.dumps(views.settings()) for views in others}) == len(others)


def test_labels_cannot_follow_rotations_and_the_error_says_what_can_be_used(refused):
    with refused("RandAugment", "--augment standard"):
        EVERYTHING.region((32, 32), torch.arange(2), torch.arange(2))


def test_limit_below_one_is_refused(refused):
    with refused("0", "1 or more"):
        EVERYTHING.limited(0)


@pytest.mark.parametrize(("channels", "flip"), [(3, 0.5), (1, 0.0)])
def test_grey_images_are_not_mirrored(channels, flip):
    assert standard(channels).crop.flip == strong(channels).crop.flip == flip
    images = IMAGES[..., :channels]
    assert strong(channels)(images, torch.arange(8), torch.arange(8)).shape == images.shape


def test_numbers_are_uniform_and_independent_of_position_stream_view_and_sample():
    grid = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    columns = []
    for stream in range(3):
        draws = Draws.of(grid[:, 0], grid[:, 1], stream)
        columns += [draws.uniform(), draws.uniform()]
    numbers = torch.stack(columns).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    torch.testing.assert_close(numbers.mean(1), torch.full((6,), 0.5, dtype=torch.float64), atol=0.012, rtol=0)
    # the largest gap between the distribution function and a straight line (Kolmogorov-Smirnov), p = 1e-4 each
    gaps = (numbers.sort(1).values - torch.linspace(0, 1, 10_000)).abs().amax(1)
    assert gaps.max() < 0.0225
    correlations = torch.corrcoef(numbers) - torch.eye(6)
    assert correlations.abs().max() < 0.045
    neighbours = numbers[0].view(100, 100)
    assert abs(torch.corrcoef(torch.stack([neighbours[:, 1:].flatten(), neighbours[:, :-1].flatten()]))[0, 1]) < 0.045
    assert abs(torch.corrcoef(torch.stack([neighbours[1:].flatten(), neighbours[:-1].flatten()]))[0, 1]) < 0.045


def test_whole_numbers_and_signs():
    draws = Draws.of(torch.arange(3000), torch.zeros(3000, dtype=torch.int64), 0)
    counts = torch.bincount(draws.integers(3), minlength=3)
    assert counts.sum() == 3000
    assert counts.min() > 900
    signs = draws.sign()
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.08


ON_A_DEVICE = """
import torch
from tests import other_device as o
from tutelage.data import ColourJitter, RandAugment, RandomErasing, RandomViews
views = RandomViews(steps=(ColourJitter(), RandAugment(), RandomErasing(probability=0.5)))
images, view, index = torch.randint(256, (5, 20, 24, 3), dtype=torch.uint8), torch.arange(5), torch.arange(5)
expected = views(images, view, index)
remote = [tensor.to(o.NAME) for tensor in (images, view, index)]
with o.ComputeMode(), o.CreationMode(), o.watch.set(True):
    augmented = views(*remote)
    assert not o.watch.seen, o.watch.seen
assert torch.equal(augmented.cpu(), expected)
"""


def test_views_do_not_wait_for_the_device():
    subprocess.run([sys.executable, "-c", ON_A_DEVICE], check=True, cwd=Path(__file__).parents[2])
