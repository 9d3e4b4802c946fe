"""The boxes that a tracker predicts for one object in each of many videos.

All videos advance together, one frame at a time, so that one forward pass serves a batch of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.data.frames import Frames
from tutelage.data.loader import stored_rows
from tutelage.data.targets.track import box_of, visible
from tutelage.data.views.squares import square_crops
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.evaluation.tracker import SCALES, WINDOW, Tracked
from tutelage.models.modes import eval_mode
from tutelage.models.random_state import fixed_draws

PIXELS = 1_600_000
"""Of the search crops in a batch, at most: 33 videos with crops of 127 pixels, 8 with 255. Larger ones are slower."""


@dataclass(frozen=True)
class Tracks:
    """Predicted boxes of a split.

    Attributes:
        boxes: (N, 4) float32 boxes (x, y, w, h); NaN before a video's first box.
        counted: (N,) bool, the frames that an evaluation counts: those with a box after the video's first one.
    """

    boxes: Tensor
    counted: Tensor


@torch.no_grad()
def track(
    model: nn.Module,
    split: Split,
    *,
    window: float = WINDOW,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    workers: int = 2,
) -> Tracks:
    """Follow the object of each video from its first box on, in one pass, without another look at the labels.

    In each frame the network responds to the template, cut from the video's first frame with a box, and to search crops
    at three scales around the last box. The scale with the highest peak over the smallest response, where those of
    others than 1 are multiplied by 0.9745, is enlarged bicubically to half pixels of the search crop, normalised to a
    sum of 1, and mixed with a Hann window of this sum: (1 - w) r + w h. The peak moves the box, and the scale changes
    its size with a rate of 0.59. A frame counts if it has a box; a video's first box is given, so its frame does not
    count (as in GOT-10k; the Object Tracking Benchmark counts it as an overlap of 1).

    Args:
        model: pairs of crops to responses (B, 1, R, R); on ``device`` already.
        split: frames of videos, with a ``Track`` for labels.
        window: its weight w; 0 is without a window.
        device, amp: where, and in which dtype of autocast, to compute.
        workers: processes that read files.

    Raises:
        NonFiniteError: a response is NaN or infinite.
        TutelageError: the inputs are no frames, or the outputs no such responses.

    Deviations from siamfc-pytorch: the scale is chosen before the response is enlarged, and by peaks over the smallest
    response, since a factor would favour negative ones; boxes keep at least 2 pixels and their centre in the frame.
    """
    modality, device = _modality(split), torch.device(device)
    boxes = torch.full((len(split), 4), torch.nan)
    labels = split.labels.cpu()
    videos = list(_rows_by_video(labels))
    counted = torch.zeros(len(split), dtype=torch.bool)
    for rows in videos:
        counted[rows[1:]] = visible(labels[rows[1:]])
    with (
        eval_mode(model),
        fixed_draws(model, 0),
        torch.autocast(device.type, dtype=amp, enabled=amp is not None),
    ):
        together = max(1, PIXELS // (len(SCALES) * modality.search**2))
        for start in range(0, len(videos), together):  # of similar length, so that few of them end early
            some = videos[start : start + together]
            for rows, predicted in _follow(model, split, modality, some, window, device, workers):
                boxes[rows] = predicted.cpu()
    return Tracks(boxes, counted)


@torch.no_grad()
def response_around(
    model: nn.Module, split: Split, first: int, row: int, box: Tensor, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The search crop around a box (4,) in one frame, and the response to the object in another frame's own box.

    Returns:
        (S, S, C) uint8 and (R, R) float32, on the CPU.
    """
    device = torch.device(device)
    modality = _modality(split)
    rows = torch.tensor([[first], [row]])
    frame, other = _frames(split, rows, device, workers=0)
    boxes = box_of(split.labels[[first]]).to(device)
    templates = Tracked.start(frame, boxes, WINDOW, modality).templates
    state = replace(Tracked.start(other, box[None].to(device), WINDOW, modality), templates=templates)
    with eval_mode(model), fixed_draws(model, 0):
        response = state.responses(model, other)[0, len(SCALES) // 2]
    crop = square_crops(other, state.centres[:, None], state.sides[:, None], modality.search)[0, 0]
    return crop.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).cpu(), response.cpu()


def _modality(split: Split) -> Frames:
    if not isinstance(split.modality, Frames):
        raise TutelageError(f"tracking needs frames of videos, and these are {split.modality.noun}")
    return split.modality


def _rows_by_video(labels: Tensor) -> Iterator[Tensor]:
    """The rows of each video, in the order of its frames and from its first box on; the longest video first."""
    order = labels[:, 1].argsort(stable=True)
    order = order[labels[order, 0].argsort(stable=True)]
    _, counts = torch.unique_consecutive(labels[order, 0], return_counts=True)
    parts = [rows[int(visible(labels[rows]).int().argmax()) :] for rows in torch.split(order, counts.tolist())]
    yield from sorted(parts, key=len, reverse=True)


def _follow(
    model: nn.Module,
    split: Split,
    modality: Frames,
    videos: Sequence[Tensor],
    window: float,
    device: torch.device,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Advance through videos together, the longest first: the rows (V,) of each step and their boxes (V, 4)."""
    first = torch.stack([rows[0] for rows in videos])
    (frames,) = _frames(split, first[None], device, workers)
    state = Tracked.start(frames, box_of(split.labels[first]).to(device), window, modality)
    yield first, state.boxes
    valid = torch.ones((), dtype=torch.bool, device=device)
    for count, plan in _steps(videos):
        state = state.first(count)  # the others have ended
        for rows, frames in zip(plan, _frames(split, plan, device, workers), strict=True):
            responses = state.responses(model, frames)
            valid &= responses.isfinite().all()
            state = state.moved(responses, frames.shape[2:])
            yield rows, state.boxes
    if not valid:  # once for all frames, since this waits for the device
        raise NonFiniteError(
            "the network's responses are NaN or infinite: if training diverged, lower the learning rate; if not, turn "
            "mixed precision off"
        )


def _steps(videos: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """The rows of all frames but the first, (steps, V), for each number V of videos that have so many frames."""
    for count, numbers in groupby(
        range(1, len(videos[0])), lambda number: sum(len(video) > number for video in videos)
    ):
        yield count, torch.stack([torch.stack([video[number] for video in videos[:count]]) for number in numbers])


def _frames(split: Split, plan: Tensor, device: torch.device, workers: int) -> Iterator[Tensor]:
    """The frames of each row of a plan (steps, V): (V, C, H, W) float32 in [0, 255]."""
    for stored in stored_rows(split.inputs, plan[:, :, None], device, workers):
        yield stored[:, 0].permute(0, 3, 1, 2).float()
