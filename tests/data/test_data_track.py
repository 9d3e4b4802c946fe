"""Labels of videos: one object's box in each frame."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.videos import moving_squares, square_videos
from tutelage.data import Data
from tutelage.data.frames import Frames
from tutelage.data.stratified import grouped_split
from tutelage.data.targets import Track
from tutelage.data.targets.track import box_of, visible

BOX = [3.0, 4.0, 5.0, 6.0]
ABSENT = [math.nan] * 4


def rows(*labels: list[float]) -> torch.Tensor:
    return torch.tensor(labels)


def test_boxes_and_visibility_are_read_from_labels() -> None:
    labels = rows([0, 0, *BOX], [0, 1, *ABSENT])
    assert box_of(labels)[0].tolist() == BOX
    assert visible(labels).tolist() == [True, False]
    targets = Track()
    assert targets.labelled(labels).tolist() == [True, False]
    assert targets.counts(labels, ["object"]) == [1]
    assert targets.groups(rows([7, 0, *BOX], [3, 0, *BOX])).tolist() == [7, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([[0, 0, *BOX[:3]]], ["5 columns", "(N, 6)"]),
        ([[0.5, 0, *BOX]], ["row 0", "video 0.5", "whole numbers"]),
        ([[0, 0, *BOX], [0, -1, *BOX]], ["row 1", "frame -1"]),
        ([[0, 0, 3, math.nan, 5, 6]], ["frame 0 of video 0", "NaN in a part"]),
        ([[0, 0, *BOX], [0, 1, 3, 4, 0, 6]], ["frame 1 of video 0", "without area"]),
        ([[2, 1, *BOX], [2, 1, *BOX]], ["frame 1 of video 2", "more than once"]),
        ([[0, 0, *BOX], [1, 0, *ABSENT]], ["video 1 has no frame with a box"]),
    ],
)
def test_invalid_labels_are_refused(labels: list[list[float]], words: list[str], refused: Any) -> None:
    frames = torch.zeros(len(labels), 8, 8, 1, dtype=torch.uint8)
    with refused(*words):
        Data.from_arrays(
            (frames, torch.tensor(labels)), (frames, torch.tensor(labels)), targets=Track(), modality=Frames()
        )


def test_whole_videos_are_held_out() -> None:
    data = replace(square_videos(videos=10, frames=5), validation=None)
    parts = data.hold_out(0.3, seed=2)
    assert parts.validation is not None
    train, validation = (set(split.labels[:, 0].tolist()) for split in (parts.train, parts.validation))
    assert not train & validation
    assert len(validation) == 3
    assert train | validation == set(data.train.labels[:, 0].tolist())
    assert len(parts.train) + len(parts.validation) == 50
    again = data.hold_out(0.3, seed=3).validation
    assert again is not None
    assert set(again.labels[:, 0].tolist()) != validation


def test_test_split_is_made_of_whole_videos_and_of_their_frames_without_a_box() -> None:
    pixels, labels = moving_squares(videos=5, frames=6)
    labels[3::6, 2:] = math.nan
    data = Data.from_arrays((pixels, labels), test_share=0.2, modality=Frames(), targets=Track())
    assert len(data.test) == 6
    assert len(data.test.labels[:, 0].unique()) == 1
    assert not set(data.test.labels[:, 0].tolist()) & set(data.train.labels[:, 0].tolist())


def test_single_video_has_no_part_for_testing(refused: Any) -> None:
    with refused("no test split", "one group", "add a test split"):
        Data.from_arrays(moving_squares(videos=1), test_share=0.5, modality=Frames(), targets=Track())
    data = Data.from_arrays(moving_squares(1), moving_squares(1), modality=Frames(), targets=Track())
    assert data.hold_out(0.5).validation is None


def test_held_out_groups_come_close_to_the_size() -> None:
    groups = torch.tensor([5] * 10 + [1] * 10 + [2] * 10 + [9] * 10)[torch.randperm(40)]
    for size, expected in ((1, 10), (10, 10), (14, 10), (16, 20), (39, 30)):
        remaining, held_out = grouped_split(groups, size, seed=4)
        assert len(held_out) == expected
        assert sorted([*remaining, *held_out]) == list(range(40))
        assert not set(groups[held_out].tolist()) & set(groups[remaining].tolist())
