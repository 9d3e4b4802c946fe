"""A tracker, and the measures of its boxes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.videos import SIDE, moving_squares
from tutelage.data import Split
from tutelage.data.frames import Frames, crops_of, pair
from tutelage.data.targets import Track
from tutelage.data.targets.track import box_of
from tutelage.errors import NonFiniteError
from tutelage.evaluation.overlap import THRESHOLDS, centre_errors, one_pass, overlaps, success_curve
from tutelage.evaluation.tracks import response_around, track
from tutelage.models.tapped import Tapped


def split_of(pixels: Tensor, labels: Tensor, search: int = 63) -> Split:
    return Split.of(pixels, labels, Frames(search), Track())


class Matching(nn.Module):
    """Responses that correlate the pixels of the crops, at a stride of 4, without any weights."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.batches: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 1, S, S + T) to (B, 1, R, R): minus the mean squared difference."""
        self.batches.append(len(inputs))
        template, search = crops_of(inputs)
        side = template.shape[2]
        places = search.unfold(2, side, 4).unfold(3, side, 4)
        return -self.factor * (places - template[:, :, None, None]).square().mean((4, 5))


def test_overlap_of_boxes_by_counting_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, others = torch.randint(1, 9, (2, 50, 4), generator=generator).double()
    for box, other, value in zip(boxes.tolist(), others.tolist(), overlaps(boxes, others), strict=True):
        sets = [
            {(i, j) for i in range(int(x), int(x + w)) for j in range(int(y), int(y + h))}
            for x, y, w, h in (box, other)
        ]
        assert value == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert overlaps(boxes, boxes).tolist() == [1.0] * 50
    assert overlaps(torch.zeros(4), torch.zeros(4)) == 0


def test_centre_error_is_a_distance() -> None:
    one, two = torch.tensor([0.0, 0, 4, 2]), torch.tensor([4.0, 4, 2, 2])
    assert centre_errors(one, two) == pytest.approx(5.0)  # from (2, 1) to (5, 5)


def test_success_curve_falls_from_all_to_no_frames() -> None:
    curve = success_curve(torch.tensor([0.0, 0.3, 0.72, 1.0]))
    assert len(curve) == len(THRESHOLDS) == 21
    assert curve[0] == 0.75  # an overlap of 0 is no success
    assert curve[10] == 0.5  # above 0.5
    assert curve[-1] == 0


def test_measures_are_means_over_videos() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10]] * 5)
    boxes = truth.clone()
    boxes[3:, 0] = 30.0  # both frames of the second video are lost
    measures = one_pass(boxes, truth, torch.tensor([7, 7, 7, 9, 9]))
    assert measures["overlap"] == 0.5
    assert measures["overlap_of_videos"].tolist() == [1.0, 0.0]
    assert measures["videos"].tolist() == [7, 9]
    assert measures["success_rate"] == 0.5
    assert measures["precision"] == 0.5
    assert measures["centre_error"] == 15.0
    assert measures["success_auc"] == pytest.approx(0.5 * 20 / 21)  # an overlap of 1 is not above 1


def test_nothing_to_count_is_undefined() -> None:
    measures = one_pass(torch.empty(0, 4), torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    assert math.isnan(measures["overlap"])
    assert len(measures["overlap_of_videos"]) == 0


@pytest.mark.parametrize("window", [0.176, 0.0])
def test_box_of_a_static_scene_stays(window: float) -> None:
    pixels, labels = moving_squares(videos=3, frames=1)
    pixels, labels = pixels.repeat_interleave(8, 0), labels.repeat_interleave(8, 0)
    labels[:, 1] = torch.arange(8).repeat(3)
    tracks = track(Matching(), split_of(pixels, labels), window=window)
    assert (tracks.boxes - box_of(labels)).abs().max() <= 1


def test_moving_object_is_followed() -> None:
    pixels, labels = moving_squares(videos=4, frames=12)
    tracks = track(Matching(), split_of(pixels, labels))
    assert centre_errors(tracks.boxes, box_of(labels)).max() < 2
    assert overlaps(tracks.boxes, box_of(labels)).mean() > 0.8


def test_box_grows_with_its_object() -> None:
    frames, labels = [], []
    texture = torch.randint(100, 255, (SIDE, SIDE), generator=torch.Generator().manual_seed(3)).float()
    for number in range(13):  # faster growth than 0.59 * 3.75 % a frame cannot be followed
        side = round(2 * SIDE * 1.02**number)
        frame = torch.zeros(64, 64)
        low = 32 - side // 2
        frame[low : low + side, low : low + side] = nn.functional.interpolate(
            texture[None, None], (side, side), mode="bilinear"
        )[0, 0]
        frames.append(frame.to(torch.uint8)[..., None])
        labels.append([0.0, number, low, low, side, side])
    tracks = track(Matching(), split_of(torch.stack(frames), torch.tensor(labels)))
    assert tracks.boxes[-1, 2] == pytest.approx(labels[-1][4], rel=0.1)
    assert tracks.boxes[-1, 2] > 1.15 * 2 * SIDE


def test_videos_are_tracked_together_as_one_by_one() -> None:
    pixels, labels = moving_squares(videos=3, frames=9)
    rows = torch.cat([torch.arange(9), torch.arange(9, 14), torch.arange(18, 25)])  # of 9, 5 and 7 frames
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    split = split_of(pixels[rows], labels[rows])
    network = Matching()
    together = track(network, split.subset(order)).boxes
    assert network.batches == [9, 9, 9, 9, 6, 6, 3, 3]  # three scales
    assert together.shape == (21, 4)
    for video in range(3):
        own = (split.labels[:, 0] == video).nonzero()[:, 0]
        alone = track(Matching(), split.subset(own)).boxes
        torch.testing.assert_close(together[torch.isin(order, own)][order[torch.isin(order, own)].argsort()], alone)


def test_network_of_many_crops_predicts_the_same_boxes() -> None:
    class Sharing(Matching):
        many_crops = True

        def forward(self, inputs: Tensor) -> Tensor:
            self.batches.append(len(inputs))
            template, search = crops_of(inputs)
            count, side = len(search) // len(template), inputs.shape[2]
            pairs = pair(template.repeat_interleave(count, 0), search)
            assert pairs.shape[3] < 2 * side
            return Matching.forward(Matching(), pairs).view(len(inputs), count, 9, 9)

    split = split_of(*moving_squares(videos=3, frames=6))
    sharing = Sharing()
    boxes = track(sharing, split).boxes
    assert sharing.batches == [3] * 5
    torch.testing.assert_close(boxes, track(Matching(), split).boxes)
    torch.testing.assert_close(track(Tapped(sharing), split).boxes, boxes)
    resizing = Tapped(Sharing()).with_size(split.modality.input_shape((64, 64, 1))[1:])  # type: ignore[arg-type]
    torch.testing.assert_close(track(resizing, split).boxes, boxes, atol=0.5, rtol=0)


def test_labels_after_the_first_frame_are_not_read() -> None:
    pixels, labels = moving_squares(videos=2, frames=6)
    changed = labels.clone()
    changed[torch.arange(12) % 6 != 0, 2:] = torch.tensor([1.0, 2.0, 30.0, 30.0])
    changed[4, 2:] = math.nan
    one, two = (track(Matching(), split_of(pixels, values)) for values in (labels, changed))
    assert torch.equal(one.boxes, two.boxes)
    assert one.counted.tolist() == [number % 6 != 0 for number in range(12)]
    assert two.counted.tolist() == [number % 6 != 0 and number != 4 for number in range(12)]


def test_tracking_starts_at_the_first_box() -> None:
    pixels, labels = moving_squares(videos=1, frames=6)
    labels[:2, 2:] = math.nan
    tracks = track(Matching(), split_of(pixels, labels))
    assert tracks.boxes[:2].isnan().all()
    assert torch.equal(tracks.boxes[2], labels[2, 2:])
    assert tracks.counted.tolist() == [False, False, False, True, True, True]


def test_window_prefers_places_near_the_last_one() -> None:
    class Slope(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.arange(9.0).expand(len(inputs), 1, 9, 9)

    pixels, labels = moving_squares(videos=1, frames=2)
    split = split_of(pixels, labels)
    boxes = torch.stack([track(Slope(), split, window=window).boxes[1] for window in (0.0, 0.176, 0.5)])
    steps = (boxes[:, 0] + boxes[:, 2] / 2 - labels[0, 2] - SIDE / 2).tolist()
    assert steps[0] > 5
    assert steps[0] > steps[1] > steps[2] > 0


def test_boxes_stay_in_the_frame() -> None:
    class Corner(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            responses = torch.zeros(len(inputs), 1, 9, 9)
            responses[:, :, 0, 0] = 1.0
            return responses

    pixels, labels = moving_squares(videos=1, frames=20)
    boxes = track(Corner(), split_of(pixels, labels), window=0.0).boxes
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    assert centres.min() >= 0
    assert boxes.isfinite().all()


def test_responses_that_are_not_finite_are_an_error(refused: Any) -> None:
    with pytest.raises(NonFiniteError, match="responses are NaN"):
        track(Matching(math.nan), split_of(*moving_squares(1, 3)))


def test_other_outputs_and_inputs_are_refused(refused: Any) -> None:
    pixels, labels = moving_squares(1, 3)
    with refused("returns (3, 10)", "(3, 1, R, R)"):
        track(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), split_of(pixels, labels))
    with refused("frames of videos", "images"):
        track(Matching(), Split.of(pixels, torch.zeros(3, dtype=torch.int64)))


def test_response_around_a_box_has_its_peak_at_the_object() -> None:
    pixels, labels = moving_squares(videos=1, frames=4)
    crop, response = response_around(Matching(), split_of(pixels, labels), 0, 3, labels[3, 2:])
    assert crop.shape == (63, 63, 1)
    assert crop.dtype == torch.uint8
    place = int(response.flatten().argmax())
    assert divmod(place, response.shape[1]) == (4, 4)
