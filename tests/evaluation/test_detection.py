"""Average precision of boxes: against plain loops, closed forms, pycocotools and faster-coco-eval."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.data.targets.boxes import CROWD, DIFFICULT, OBJECT
from tutelage.evaluation.detection import average_precision, box_iou
from tutelage.evaluation.detection.average_precision import AREA_RANGES

NONE = [0.0, 0.0, 0.0, 0.0, -1.0, 0.0]


def random_case(seed: int, images: int = 25, most: int = 8, depth: int = 40, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Boxes of all kinds and detections near them, with equal scores and empty images."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    corner, side = uniform(images, most, 2) * 100, uniform(images, most, 2) * 90 + 4
    number = torch.randint(-1, classes, (images, most, 1), generator=generator).double()
    boxes = torch.cat([corner, corner + side, number, torch.zeros(images, most, 1)], 2)
    boxes[uniform(images, most) < 0.15, 5] = CROWD
    boxes[::5, :, 4] = -1
    sources = torch.randint(most, (depth,), generator=generator)
    places = boxes[:, sources, :4] + 6 * torch.randn(images, depth, 4, generator=generator, dtype=torch.float64)
    places[..., 2:] = torch.maximum(places[..., 2:], places[..., :2] + 1)
    scores = (uniform(images, depth, 1) * 30).round() / 30
    detected = torch.where(uniform(images, depth, 1) < 0.2, -1.0, boxes[:, sources, 4:5].clamp(min=0))
    return torch.cat([places, scores, detected], 2), boxes


def classes_of(judge: str) -> tuple[Any, Any]:
    """The classes of a program of the field that hold a data set and that evaluate detections."""
    if judge == "faster-coco-eval":
        module = pytest.importorskip("faster_coco_eval", reason="the extra detection is not installed")
        return module.COCO, module.COCOeval_faster
    module = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    return module.COCO, importlib.import_module("pycocotools.cocoeval").COCOeval


def coco_stats(judge: str, detections: Tensor, boxes: Tensor, classes: int) -> list[float]:
    """The twelve numbers of COCO's evaluation, by a program of the field."""
    data_set, evaluator = classes_of(judge)
    rows = [(image, row) for image, group in enumerate(boxes.tolist()) for row in group if row[4] >= 0]
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": int(row[4]),
            "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
            "area": (row[2] - row[0]) * (row[3] - row[1]),
            "iscrowd": int(row[5] == CROWD),
        }
        for number, (image, row) in enumerate(rows, 1)
    ]
    detected = [
        {"image_id": image, "category_id": int(row[5]), "score": row[4]}
        | {"bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]]}
        for image, group in enumerate(detections.tolist())
        for row in group
        if row[5] >= 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = data_set()
        truth.dataset = {
            "images": [{"id": image} for image in range(len(boxes))],
            "annotations": annotations,
            "categories": [{"id": number} for number in range(classes)],
        }
        truth.createIndex()
        evaluation = evaluator(truth, truth.loadRes(detected), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:12]]


def own_stats(detections: Tensor, boxes: Tensor, classes: int) -> list[float]:
    """Our twelve numbers in the order of COCO's, -1 where they are undefined."""
    every, *few = (average_precision(detections, boxes, classes, most=most) for most in (100, 1, 10))
    by_area = [average_precision(detections, boxes, classes, area_range=bounds) for bounds in AREA_RANGES.values()]
    numbers = [every.mean, every.at(0.5), every.at(0.75), *(result.mean for result in by_area)]
    numbers += [result.mean_recall for result in (*few, every, *by_area)]
    return np.nan_to_num(numbers, nan=-1.0).tolist()


JUDGES = ("pycocotools", "faster-coco-eval")


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("seed", range(4))
def test_all_twelve_numbers_are_those_of_the_field(judge: str, seed: int) -> None:
    detections, boxes = random_case(seed)
    stats = coco_stats(judge, detections, boxes, 3)
    assert own_stats(detections, boxes, 3) == pytest.approx(stats, abs=1e-12)
    assert len(stats) == 12
    assert len({*stats}) > 8  # of one case, few agree by chance


@pytest.mark.parametrize("judge", JUDGES)
def test_more_than_100_detections_of_a_class_are_cut_as_by_the_field(judge: str) -> None:
    detections, boxes = random_case(9, images=6, depth=260, classes=2)
    assert own_stats(detections, boxes, 2) == pytest.approx(coco_stats(judge, detections, boxes, 2), abs=1e-12)


def loop_ap(detections: Tensor, boxes: Tensor, number: int, threshold: float) -> float:
    """The average precision of one class in plain loops, with difficult boxes and crowds."""
    marks: list[tuple[float, int, bool]] = []
    positives = 0
    for image, (detected, truth) in enumerate(zip(detections.tolist(), boxes.tolist(), strict=True)):
        own = [row for row in truth if row[4] == number]
        positives += sum(row[5] == OBJECT for row in own)
        used: set[int] = set()
        for row in sorted((row for row in detected if row[5] == number), key=lambda row: -row[4])[:100]:
            best: tuple[bool, float, int] | None = None
            for place, box in enumerate(own):
                if place in used and box[5] != CROWD:
                    continue
                w = max(0.0, min(row[2], box[2]) - max(row[0], box[0]))
                h = max(0.0, min(row[3], box[3]) - max(row[1], box[1]))
                own_area = (row[2] - row[0]) * (row[3] - row[1])
                union = own_area + (box[2] - box[0]) * (box[3] - box[1]) - w * h
                iou = w * h / (own_area if box[5] == CROWD else union)
                if iou >= threshold:
                    best = max(best or (False, -1.0, -1), (box[5] == OBJECT, iou, place))
            if best is None:
                marks.append((-row[4], image, False))
            else:
                used.add(best[2])
                if best[0]:
                    marks.append((-row[4], image, True))
    right = wrong = 0
    points = []
    for _, _, good in sorted(marks, key=lambda mark: mark[0]):
        right, wrong = right + good, wrong + (not good)
        points.append((right / positives, right / (right + wrong)))
    recalls = np.linspace(0, 1, 101)
    return float(np.mean([max((p for r, p in points if r >= recall), default=0.0) for recall in recalls]))


def test_average_precision_equals_plain_loops_with_difficult_boxes() -> None:
    detections, boxes = random_case(5, images=12)
    boxes[:, ::4, 5] = DIFFICULT
    result = average_precision(detections, boxes, 3)
    for number in range(3):
        for column, threshold in ((0, 0.5), (5, 0.75)):
            expected = loop_ap(detections, boxes, number, threshold)
            assert float(result.precision[number, column]) == pytest.approx(expected, abs=1e-9)


def test_closed_forms() -> None:
    box = [10.0, 10.0, 30.0, 30.0, 0.0, 0.0]
    boxes = torch.tensor([[box, NONE]])

    def ap(*rows: list[float]) -> float:
        return average_precision(torch.tensor([list(rows)]), boxes, 1).mean

    assert ap([10, 10, 30, 30, 0.9, 0]) == pytest.approx(1)
    assert ap([10, 10, 30, 30, 0.9, 0], [50, 50, 60, 60, 0.5, 0]) == pytest.approx(1)  # a worse one is no harm
    assert ap([10, 10, 30, 30, 0.5, 0], [50, 50, 60, 60, 0.9, 0]) == pytest.approx(0.5)
    assert ap([10, 10, 30, 30, 0.9, 0], [10, 10, 30, 30, 0.8, 0]) == pytest.approx(1)
    assert ap([10, 10, 30, 24, 0.9, 0]) == pytest.approx(0.5)  # an IoU of 0.7: right at 5 of 10 thresholds
    assert ap([10, 10, 30, 30, 0.9, -1]) == 0
    crowd = torch.tensor([[box, [40, 40, 60, 60, 0, CROWD]]])
    hits = [[42.0 + n, 42, 48 + n, 48, 0.95 - n / 100, 0] for n in range(5)]
    result = average_precision(torch.tensor([[*hits, [10, 10, 30, 30, 0.5, 0]]]), crowd, 1)
    assert result.mean == pytest.approx(1)  # a crowd absorbs any number of detections


def test_classes_without_boxes_are_left_out_and_no_box_at_all_is_undefined() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 9.0, 9.0, 1.0, 0.0]]])
    detected = torch.tensor([[[0.0, 0.0, 9.0, 9.0, 0.5, 1.0], [0.0, 0.0, 9.0, 9.0, 0.5, 0.0]]])
    result = average_precision(detected, boxes, 3)
    assert result.mean == pytest.approx(1)
    assert result.by_class.isnan().tolist() == [True, False, True]
    assert np.isnan(average_precision(detected, torch.tensor([[NONE]]), 3).mean)
    empty = average_precision(torch.zeros(1, 0, 6), boxes, 3)
    assert (empty.mean, empty.mean_recall) == (0, 0)


def test_iou_of_a_crowd_is_the_share_of_the_detection() -> None:
    first, second = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 11.0, 10.0]] * 2)
    assert box_iou(first, second, torch.tensor([False, True]))[0].tolist() == pytest.approx([2 / 102, 0.5])
    assert float(box_iou(first, torch.zeros(1, 4))) == 0
