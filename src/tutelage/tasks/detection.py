"""The detection task: boxes of objects in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn

from tutelage.data.data import Data, Split
from tutelage.errors import TutelageError
from tutelage.evaluation.detection import AveragePrecision, average_precision
from tutelage.evaluation.detection.average_precision import AREA_RANGES
from tutelage.evaluation.detection.detect import detect
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.models.centre_points import GEOMETRY
from tutelage.models.outputs import Outputs
from tutelage.tasks._detection_drawings import draw_detections
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.task import Compute, Task
from tutelage.terms.centre_points import CentreLoss
from tutelage.terms.term import Term

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
                f"ar{most}": Metric(f"average recall of {most} detections", "higher", percent=True, in_studies=False)
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

    def _precision(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> AveragePrecision:
        return average_precision(self._detections(model, split, compute), split.labels, data.num_classes)

    def _detections(self, model: nn.Module, split: Split, compute: Compute) -> Tensor:
        return detect(model, split, device=compute.device, amp=compute.amp, workers=compute.workers)


task = Detection()
