"""Average precision of detected boxes, by the definitions of COCO."""

from tutelage.evaluation.detection.average_precision import AveragePrecision, average_precision
from tutelage.evaluation.detection.matching import Matches, box_iou, match

__all__ = ["AveragePrecision", "Matches", "average_precision", "box_iou", "match"]
