"""The detection task: boxes of objects in images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.data.data import Data, Split
from tutelage.data.formats.boxes import coco
from tutelage.data.formats.boxes.letterbox import letterboxed
from tutelage.data.inputs import Inputs
from tutelage.data.inputs.images import image_inputs, listed_images
from tutelage.errors import TutelageError
from tutelage.evaluation.detection import AveragePrecision, average_precision
from tutelage.evaluation.detection.average_precision import AREA_RANGES
from tutelage.evaluation.detection.detect import detect
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.models.centre_points import GEOMETRY
from tutelage.models.outputs import Outputs
from tutelage.tasks._detection_drawings import SCORE, draw_detections
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request
from tutelage.tasks.task import Compute, Task
from tutelage.terms.centre_points import CentreLoss
from tutelage.terms.term import Term

COCO_SUFFIX = ".json"
FEW_DETECTIONS = (1, 10)  # of each class in each image, for which COCO states the average recall, too


class Detection(Task):
    """Boxes of objects, judged by COCO's average precision; the network returns a map of centre points.

    Boxes are compared in the images as the network gets them. Scaling an image moves true and found boxes alike, so
    IoUs, and all metrics but those of an area range, are the same in the original images.
    """

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "ap": Metric("average precision, IoU 0.50 to 0.95", "higher", percent=True),
            "ap50": Metric("average precision at IoU 0.50", "higher", percent=True),
            "ap75": Metric("average precision at IoU 0.75", "higher", percent=True),
            "ar100": Metric("average recall of 100 detections", "higher", percent=True),
            **{
                f"ar{most}": Metric(
                    f"average recall of {most} detection{'s' * (most > 1)}", "higher", percent=True, in_studies=False
                )
                for most in FEW_DETECTIONS
            },
            **{
                f"{short}_{name}": Metric(f"{title} of {name} objects", "higher", percent=True, in_studies=False)
                for short, title in (("ap", "average precision"), ("ar", "average recall"))
                for name in AREA_RANGES
            },
            "ap_by_class": Curve("average precision of each class"),
            "teacher_ap": Metric("the teacher's average precision", None, percent=True),
        }
    )
    decision_rule: ClassVar[str] = (
        "tutelage.models.centre_points.decode(outputs, (H, W)) returns boxes, scores and classes: the largest "
        "of 3x3 cells, up to 100 for each image"
    )
    joint_name: ClassVar[str] = "detections.json"
    prediction_columns: ClassVar[tuple[str, ...]] = (
        *("file", "image_id", "class", "category_id", "score"),
        *("x", "y", "width", "height"),
    )
    class_metrics: ClassVar[Mapping[str, str]] = MappingProxyType({"AP": "ap_by_class"})
    class_note: ClassVar[str] = "AP: the average precision, the mean over IoUs of 0.50 to 0.95."
    counted: ClassVar[str] = "objects"
    columns: ClassVar[Mapping[str, str]] = MappingProxyType({"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ar100": "AR"})

    def recognises(self, module: nn.Module) -> bool:
        """Networks that say so in an attribute ``task``."""
        return getattr(module, "task", None) == self.name

    def label_loss(self) -> Term:
        """The focal loss of the heat maps and the L1 distances of sizes and offsets."""
        return CentreLoss()

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require a map with a channel for each class and four more."""
        logits = outputs.logits
        expected = data.num_classes + GEOMETRY
        if logits is not None and (logits.ndim != 4 or logits.shape[1] != expected):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for the {data.num_classes} classes of "
                f"{data.name}; give it a detector of centre points such as centre10x0.25, whose output is "
                f"(B, {expected}, h, w)"
            )

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """Average precision alone."""
        return self._precision(model, split, data, compute).mean

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics; a class without an object in the split is left out of their means."""
        detections, boxes = self._detections(model, split, compute), split.labels
        every = average_precision(detections, boxes, data.num_classes)
        few = {most: average_precision(detections, boxes, data.num_classes, most=most) for most in FEW_DETECTIONS}
        by_area = {
            name: average_precision(detections, boxes, data.num_classes, area_range=bounds)
            for name, bounds in AREA_RANGES.items()
        }
        metrics = {
            "samples": len(split),
            "ap": json_number(every.mean),
            "ap50": json_number(every.at(0.5)),
            "ap75": json_number(every.at(0.75)),
            "ar100": json_number(every.mean_recall),
            **{f"ar{most}": json_number(result.mean_recall) for most, result in few.items()},
            **{f"ap_{name}": json_number(result.mean) for name, result in by_area.items()},
            **{f"ar_{name}": json_number(result.mean_recall) for name, result in by_area.items()},
            "ap_by_class": json_numbers(every.by_class),
        }
        if teacher is not None:
            metrics["teacher_ap"] = json_number(self._precision(teacher, split, data, compute).mean)
        return metrics

    def drawings(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> Sequence[Drawing]:
        """Images with their boxes and the detections, those with the most mistakes first."""
        return draw_detections(self._detections(model, split, compute).cpu(), split, data.classes)

    def inputs(self, paths: Sequence[Path], shape: tuple[int, ...], *, random_boxes: bool, skip_bad: bool) -> Inputs:
        """Images, or a COCO file that lists images: these then have the numbers of the file, and so have classes."""
        if not any(path.suffix.lower() == COCO_SUFFIX for path in paths):
            return image_inputs(listed_images(paths), shape, letterboxed, skip_bad=skip_bad)
        if len(paths) > 1:
            raise TutelageError(
                f"a COCO file lists its images, so it is the only input, and there are {len(paths)}; name it alone"
            )
        images, categories = coco.listed_images(paths[0])
        listed = [(file, file.stem) for file, _ in images]
        ids = [number for _, number in images]
        return replace(image_inputs(listed, shape, letterboxed, skip_bad=skip_bad, ids=ids), categories=categories)

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """The detections in each image by falling score, in its own pixels and cut at its rim.

        A COCO file of inputs determines the numbers of images and classes; without one both count from 1.
        """
        inputs = request.inputs
        numbers = inputs.categories or {name: number for number, name in enumerate(request.classes, 1)}
        if missing := [name for name in request.classes if name not in numbers]:
            raise TutelageError(f"the COCO file has no category {missing[0]!r:.80}, which the network detects; add it")
        detections = detect(request.model, inputs.split, device=request.device, workers=request.workers).cpu().double()
        side = inputs.split.inputs.shape[1:3]
        for image, listed in enumerate(detections):
            left, top, width, height = inputs.views[image].tolist()
            scale = torch.tensor([width / side[1], height / side[0]] * 2)
            whole = inputs.sizes[image].flip(0).repeat(2)
            corners = (listed[:, :4] * scale + torch.tensor([left, top] * 2)).clamp(min=0).minimum(whole)
            rows = []
            for (x1, y1, x2, y2), (score, number) in zip(corners.tolist(), listed[:, 4:].tolist(), strict=True):
                if number < 0 or x2 <= x1 or y2 <= y1:
                    continue
                name = request.classes[int(number)]
                place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
                rows.append(
                    {"image_id": inputs.ids[image], "class": name, "category_id": numbers[name], "score": score} | place
                )
            yield Prediction(rows)

    def row_text(self, row: Mapping[str, Any]) -> str:
        """A detection with a score of at least 0.3: class, score and box."""
        if row["score"] < SCORE:
            return ""
        box = ", ".join(f"{row[side]:.1f}" for side in ("x", "y", "width", "height"))
        return f"{row['file']}  {row['class']} {row['score']:.2f}  x, y, width, height {box}"

    def joint_file(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        """The detections in COCO's format of results: a list of image_id, category_id, bbox and score."""
        results = [
            {
                "image_id": row["image_id"],
                "category_id": row["category_id"],
                "bbox": [round(row[side], 3) for side in ("x", "y", "width", "height")],
                "score": round(row["score"], 6),
            }
            for row in rows
        ]
        return json.dumps(results).encode()

    def _precision(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> AveragePrecision:
        return average_precision(self._detections(model, split, compute), split.labels, data.num_classes)

    def _detections(self, model: nn.Module, split: Split, compute: Compute) -> Tensor:
        return detect(model, split, device=compute.device, amp=compute.amp, workers=compute.workers)


task = Detection()
