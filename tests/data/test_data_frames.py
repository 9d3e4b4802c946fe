"""Pairs of crops from frames of videos."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.videos import moving_squares, square_videos
from tutelage.data import Split
from tutelage.data.frames import FramePairs, Frames, crops_of, pair, template_side
from tutelage.data.images import ImageSubset
from tutelage.data.loader import Batches, evaluation_batches
from tutelage.data.targets import Track
from tutelage.data.views import JoiningViews


def test_sides_of_crops() -> None:
    assert [template_side(side) for side in (127, 255)] == [63, 127]
    assert Frames(255).input_shape((240, 320, 3)) == (3, 255, 382)


@pytest.mark.parametrize("search", [3, 128, 125])
def test_other_sides_are_refused(search: int, refused: Any) -> None:
    with refused("15, 19, 23", str(search)):
        Frames(search)


def test_pair_is_one_tensor_and_its_crops_come_back() -> None:
    template, search = torch.rand(2, 3, 7, 7), torch.rand(2, 3, 15, 15)
    inputs = pair(template, search)
    assert inputs.shape == (2, 3, 15, 22)
    back = crops_of(inputs)
    assert torch.equal(back[0], template)
    assert torch.equal(back[1], search)


def test_images_are_no_pairs(refused: Any) -> None:
    with refused("pairs of crops", "32 x 32"):
        crops_of(torch.zeros(1, 3, 32, 32))


def test_templates_come_from_the_same_video_and_nearby() -> None:
    _, labels = moving_squares(videos=3, frames=30)
    shuffled = labels[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    views = FramePairs(gap=5)
    rows = torch.arange(90).repeat(40).view(40, 90)
    view = torch.arange(1, 3601).view(40, 90)
    members = views.members(shuffled, rows, view, rows + 1000)
    assert members.shape == (40, 90, 2)
    assert torch.equal(members[..., 1], rows)
    template, search = shuffled[members[..., 0]], shuffled[members[..., 1]]
    assert torch.equal(template[..., 0], search[..., 0])
    distance = template[..., 1] - search[..., 1]
    assert distance.min() == -4
    assert distance.max() == 4
    middle = distance[(search[..., 1] >= 4) & (search[..., 1] <= 25)]
    shares = torch.histc(middle, 9, -4.5, 4.5) / len(middle)
    assert (shares - 1 / 9).abs().max() < 0.03
    assert torch.equal(views.members(shuffled, rows, view, rows + 1000), members)


def test_identity_view_shows_the_frame_itself() -> None:
    _, labels = moving_squares()
    rows = torch.arange(len(labels))
    members = FramePairs().members(labels, rows, torch.zeros_like(rows), rows)
    assert torch.equal(members, torch.stack([rows, rows], 1))


def test_frame_without_a_box_is_replaced_by_the_nearest_one_with_it() -> None:
    _, labels = moving_squares(videos=2, frames=10)
    labels[2:7, 2:] = math.nan  # frames 2 to 6 of the first video
    labels[10:19, 2:] = math.nan  # all but the last of the second
    rows = torch.arange(20)
    members = FramePairs(gap=2).members(labels, rows, torch.full_like(rows, 3), rows)
    assert members[2:7, 1].tolist() == [1, 1, 7, 7, 7]
    assert members[10:, 1].tolist() == [19] * 10
    assert members[10:, 0].tolist() == [19] * 10  # nothing is in the gap, or only the last frame
    assert not labels[members, 2].isnan().any()


def centre_of_brightness(crop: Tensor) -> Tensor:
    """The mean place (x, y) of the pixels of the square, which are above 90."""
    y, x = (crop > 90).nonzero().T
    return torch.stack([x.float().mean(), y.float().mean()]) + 0.5


def test_boxes_are_where_the_object_is_in_the_search_crop() -> None:
    pixels, labels = moving_squares(videos=4, frames=6)
    views = FramePairs(shift=0.2, stretch=0.2)
    rows = torch.arange(24)
    members = views.members(labels, rows, rows + 1, rows)
    inputs, boxes = views.joined(pixels[members], labels[members], rows + 1, rows)
    assert inputs.shape == (24, 1, 127, 190)
    template, search = crops_of(inputs)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    for row in range(24):
        assert (centre_of_brightness(template[row, 0]) - 31.5).abs().max() < 1
        assert (centre_of_brightness(search[row, 0]) - centres[row]).abs().max() < 1
        assert (search[row, 0] > 90).sum().sqrt() == pytest.approx(float(boxes[row, 2]), rel=0.06)
    shift = centres / 127 - 0.5
    assert shift.abs().max() <= 0.2
    assert shift.abs().max() > 0.15
    sizes = boxes[:, 2] / (63 / 2)  # the context doubles the side
    assert sizes.min() >= 1 / 1.2
    assert sizes.max() <= 1 / 0.8
    assert sizes.max() / sizes.min() > 1.2


def test_identity_view_is_centred() -> None:
    split = square_videos().train
    batch = next(evaluation_batches(split))
    assert batch.inputs.shape == (24, 1, 127, 190)
    assert batch.inputs.max() <= 1
    torch.testing.assert_close(batch.targets[:, :2] + batch.targets[:, 2:] / 2, torch.full((24, 2), 63.5))
    torch.testing.assert_close(batch.targets[:, 2:], torch.full((24, 2), 31.5))
    assert torch.equal(batch.index, split.index)


def test_batches_replay_and_depend_on_the_epoch() -> None:
    data = square_videos()
    batches = Batches(data.train, batch_size=8, views=data.views, seed=5)
    first, again, other = (list(batches.epoch(epoch)) for epoch in (0, 0, 1))
    assert [batch.inputs.shape for batch in first] == [(8, 1, 127, 190)] * 3
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)
    assert not torch.equal(first[0].inputs, other[0].inputs)
    assert torch.equal(batches.at(1).inputs, first[1].inputs)
    key = first[0].key
    assert key is not None
    assert torch.equal(key[:, 0], first[0].index)


def test_processes_share_the_batches() -> None:
    data = square_videos()
    whole = next(Batches(data.train, batch_size=8, views=data.views).epoch(0))
    for rank in range(2):
        part = next(Batches(data.train, batch_size=8, views=data.views, rank=rank, world=2).epoch(0))
        torch.testing.assert_close(part.inputs, whole.inputs[rank::2])
        torch.testing.assert_close(part.targets, whole.targets[rank::2])


def test_second_view_is_another_pair() -> None:
    data = square_videos()
    plain = next(Batches(data.train, batch_size=8, views=data.views).epoch(0))
    batch = next(Batches(data.train, batch_size=8, views=data.views, second=True).epoch(0))
    assert batch.second is not None
    assert torch.equal(batch.inputs, plain.inputs)
    assert batch.second.shape == batch.inputs.shape
    assert not torch.equal(batch.second, batch.inputs)


class InFiles:
    """Frames that pretend to be files."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.shape = tuple(pixels.shape)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.pixels[index]

    def fingerprint(self, position: int) -> str:
        return f"frame {position}"


def test_frames_in_files_give_equal_batches() -> None:
    pixels, labels = moving_squares()
    memory = Split.of(pixels, labels, Frames(), Track())
    files = Split.of(InFiles(pixels), labels, Frames(), Track())  # type: ignore[arg-type]
    part = files.subset(torch.arange(12))
    assert isinstance(part.inputs, ImageSubset)
    for one, two in ((memory, files), (memory.subset(torch.arange(12)), part)):
        batches = [
            [
                *Batches(split, batch_size=6, views=FramePairs(), workers=0).epoch(0),
                *evaluation_batches(split, batch_size=5, workers=0),
            ]
            for split in (one, two)
        ]
        for a, b in zip(*batches, strict=True):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)


def test_views_are_limited_and_join_samples(refused: Any) -> None:
    views = FramePairs().limited(4)
    assert views.count == 4
    assert isinstance(views, JoiningViews)
    assert views.settings()["gap"] == 100
    with refused("the limit of views must be 1 or more"):
        FramePairs(limit=0)
    with refused("a gap of 1", "0.5"):
        replace(views, shift=0.5)
    with refused("augmentation strong", "frames of videos"):
        Frames().named_views("strong", (48, 64, 1))


def test_statistics_are_those_of_the_frames() -> None:
    data = square_videos()
    mean, std = data.mean_std
    pixels = data.train.inputs.double() / 255  # type: ignore[union-attr]
    assert mean[0] == pytest.approx(float(pixels.mean()))
    assert std[0] == pytest.approx(float(pixels.std(correction=0)))
