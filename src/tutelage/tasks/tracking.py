"""The tracking task: one object in the frames of a video, found again from its box in the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.frames import Frames
from tutelage.data.inputs import Inputs
from tutelage.data.inputs.videos import video_inputs
from tutelage.data.targets.track import box_of, visible
from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.evaluation.overlap import THRESHOLDS, one_pass
from tutelage.evaluation.tracker import WINDOW
from tutelage.evaluation.tracks import Tracks, response_around, track
from tutelage.models.outputs import Outputs
from tutelage.tasks._tracks import selected, sheet
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.task import Compute, Task
from tutelage.terms.term import Term

RADIUS = 2  # cells of the response; 16 pixels at a stride of 8
MARGIN = 0.02  # above the overlap of a box that stays where it is


def places(boxes: Tensor, inputs: Tensor, side: int) -> Tensor:
    """Which places of a response count as the object: (B, R, R) float32 of 0 and 1.

    They are those at an L1 distance of at most 2 cells from the place of the box's centre, rounded to a cell: 13
    places, if the centre is not near the rim.

    Args:
        boxes: (B, 4), (x, y, w, h) in pixels of the search crop.
        inputs: (B, C, S, S + T), for the sides of the crops.
        side: R; the stride is (S - T) / (R - 1).
    """
    search = inputs.shape[2]
    stride = (2 * search - inputs.shape[3]) / max(side - 1, 1)
    centre = ((boxes[:, :2] + boxes[:, 2:] / 2 - search / 2) / stride).round() + (side - 1) / 2
    cells = torch.arange(side, device=boxes.device)
    distance = (cells - centre[:, :1]).abs()[:, None, :] + (cells - centre[:, 1:]).abs()[:, :, None]
    return (distance <= RADIUS).float()


class ResponseLoss(Term):
    """sum_p w_p BCE(r_p, y_p) over the places p of a response r, (B,) nats.

    y is 1 at the places of the object (``places``) and 0 elsewhere, BCE(r, y) = log(1 + e^r) - y r, and the weights w
    of the places with y = 1, and of those with y = 0, add up to 1/2 (Bertinetto et al. 2016, arXiv 1606.09549).
    """

    reads_teacher = False

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        batch = self.required(batch, "the batch, for its targets")
        response = student["logits"][:, 0]
        truth = places(batch.targets, batch.inputs, response.shape[2])
        inside, outside = truth.flatten(1).sum(1), (1 - truth).flatten(1).sum(1)
        shares = truth / (2 * inside.clamp(min=1))[:, None, None] + (1 - truth) / (2 * outside)[:, None, None]
        losses = F.binary_cross_entropy_with_logits(response, truth, reduction="none")
        return (shares * losses).flatten(1).sum(1)


class Tracking(Task):
    """One object in the frames of a video, from its first box on, by the responses (B, 1, R, R) of a Siamese network.

    The evaluation is in one pass over whole videos, see ``tutelage.evaluation.tracks``; each measure is the mean over
    videos of the mean over their frames with a box, without the first. Coordinates are pixels of the stored frames.

    Args:
        window: the weight of the window by which the tracker prefers places near the last one. It can hide a bad
            network; ``Tracking(window=0.0)`` measures without it.
    """

    prediction_suffix: ClassVar[str] = ".txt"
    decision_rule: ClassVar[str] = (
        "tutelage.evaluation.tracks.track: crops around the last box at three scales, and the peak of the response; "
        "templates and search crops are the network's inputs, side by side (tutelage.data.frames.pair)"
    )
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "average_overlap": Metric("average overlap", "higher", percent=True),
            "success_auc": Metric("area under the success curve", "higher", percent=True),
            "success_rate": Metric("frames with an overlap above 0.5", "higher", percent=True),
            "precision": Metric("frames with a centre error of at most 20 pixels", "higher", percent=True),
            "centre_error": Metric("mean centre error in pixels", "lower"),
            "fixed_average_overlap": Metric("average overlap of a box that never moves", None, percent=True),
            "success_curve": Curve("share of frames by the overlap that they exceed"),
            "overlap_of_videos": Curve("average overlap of each video"),
            "teacher_average_overlap": Metric("the teacher's average overlap", None, percent=True),
        }
    )
    columns: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "average_overlap": "overlap",
            "average_overlap_without_window": "without window",
            "success_auc": "success",
            "precision": "precision",
            "centre_error": "centre error",
        }
    )

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window

    def label_loss(self) -> Term:
        """Weighted binary cross-entropy of each place."""
        return ResponseLoss()

    def check_data(self, data: Data) -> None:
        """Require frames of videos with a box."""
        super().check_data(data)
        if not isinstance(data.modality, Frames):
            raise TutelageError(f"tracking needs frames of videos, and {data.name} has {data.modality.noun}")

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require one square response of odd side."""
        response = outputs.logits
        if response is None:
            return
        shape = tuple(response.shape)
        if len(shape) != 4 or shape[1] != 1 or shape[2] != shape[3] or shape[2] < 3 or shape[2] % 2 == 0:
            raise TutelageError(
                f"{name} returns outputs of shape {shape}; tracking needs responses (B, 1, R, R) of odd R, as those of "
                "siamese8"
            )

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The average overlap."""
        return float(measured(self._tracks(model, split, compute), split)["overlap"])

    def _tracks(self, model: nn.Module, split: Split, compute: Compute) -> Tracks:
        return track(model, split, window=self.window, device=compute.device, amp=compute.amp, workers=compute.workers)

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics in one pass."""
        values = measured(self._tracks(model, split, compute), split)
        result: dict[str, Any] = {
            "samples": len(split),
            "videos": len(values["videos"]),
            "average_overlap": json_number(values["overlap"]),
            "success_auc": json_number(values["success_auc"]),
            "success_rate": json_number(values["success_rate"]),
            "precision": json_number(values["precision"]),
            "centre_error": json_number(values["centre_error"]),
            "fixed_average_overlap": json_number(measured(unmoved(split), split)["overlap"]),
            "success_curve": {"overlap": json_numbers(THRESHOLDS), "share": json_numbers(values["success"])},
        }
        videos = [video_name(data, number) for number in values["videos"].tolist()]
        result["overlap_of_videos"] = dict(zip(videos, json_numbers(values["overlap_of_videos"]), strict=True))
        if teacher is not None:
            result["teacher_average_overlap"] = json_number(self.score(teacher, split, data, compute))
        return result

    def chance_level(self, data: Data) -> float | None:
        """The overlap of a box that never moves, plus a margin."""
        return float(measured(unmoved(data.test), data.test)["overlap"]) + MARGIN

    def drawings(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> Sequence[Drawing]:
        """Frames of the worst, a typical and the best video, with the true and the predicted box, and a response."""
        tracks = self._tracks(model, split, compute)
        result, respond = measured(tracks, split), partial(response_around, model, split, device=compute.device)
        return [
            Drawing(
                sheet(split, tracks.boxes, int(result["videos"][position]), respond),
                f"{video_name(data, int(result['videos'][position]))}: average overlap "
                f"{float(result['overlap_of_videos'][position]):.0%}",
            )
            for position in selected(result["overlap_of_videos"])
        ]

    def inputs(self, paths: Sequence[Path], shape: tuple[int, ...], *, random_boxes: bool, skip_bad: bool) -> Inputs:
        """Folders of frames with the first box."""
        return video_inputs(paths, shape)

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The box in each frame, x and y from 1; a text file of them in the layout of the Object Tracking Benchmark."""
        inputs = request.inputs
        tracks = self._tracks(request.model, inputs.split, Compute(request.device, None, request.workers))
        for boxes in torch.split(tracks.boxes + torch.tensor([1.0, 1.0, 0.0, 0.0]), inputs.counts.tolist()):
            lines = [
                ",".join("NaN" if math.isnan(value) else f"{value:.2f}" for value in row) for row in boxes.tolist()
            ]
            rows = [
                {"frame": number, **dict(zip(("x", "y", "width", "height"), json_numbers(row), strict=True))}
                for number, row in enumerate(boxes, 1)
            ]
            yield Prediction(rows, "".join(f"{line}\n" for line in lines).encode())


def video_name(data: Data, number: int) -> str:
    """The name of a video in the record of the data; without one, its number."""
    names: Sequence[str] = next((entry["videos"] for entry in data.record if "videos" in entry), ())
    return names[number] if number < len(names) else str(number)


def measured(tracks: Tracks, split: Split) -> dict[str, Tensor]:
    """``one_pass`` of the predicted boxes."""
    labels, counted = split.labels.cpu(), tracks.counted
    return one_pass(tracks.boxes[counted], box_of(labels[counted]), labels[counted, 0].long())


def unmoved(split: Split) -> Tracks:
    """Tracks whose boxes all are the first box of their video."""
    labels = split.labels.cpu()
    boxes, counted = torch.full((len(labels), 4), torch.nan), visible(labels)
    for number in torch.unique(labels[:, 0]):
        rows = (labels[:, 0] == number).nonzero()[:, 0]
        seen = rows[visible(labels[rows])]
        first = seen[labels[seen, 1].argmin()]
        boxes[rows] = box_of(labels[first])
        counted[first] = False
    return Tracks(boxes, counted)


task = Tracking()
