"""The loss of centre points: closed forms, a reference in plain loops, and its minimum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.targets.boxes import CROWD, DIFFICULT
from tutelage.models.outputs import Outputs
from tutelage.terms.centre_points import CentreLoss, CentreTargets, gaussian_radius, heat_loss

SIZE, CELLS, CLASSES = (32, 48), (8, 12), 3
BOXES = torch.tensor(
    [
        [[4, 4, 20, 16, 0, 0], [8, 6, 30, 30, 0, 0], [0, 0, 12, 20, 2, DIFFICULT], [0, 0, 0, 0, -1, 0]],
        [[40, 20, 48, 32, 1, 0], [20, 2, 30, 12, 1, CROWD], [0, 0, 0, 0, -1, 0], [0, 0, 0, 0, -1, 0]],
        [[0, 0, 0, 0, -1, 0]] * 4,
    ],
    dtype=torch.float64,
)


def batch_of(boxes: Tensor) -> Batch:
    return Batch(torch.zeros(len(boxes), 1, *SIZE), boxes, torch.arange(len(boxes)), None)


def moved_iou(width: float, height: float, first: float, second: float) -> float:
    """The IoU of a box and the one whose upper left corner moves by (first, first) and lower right by (second, ..)."""
    x = min(width, width + second) - max(0, first)
    y = min(height, height + second) - max(0, first)
    own, other = width * height, (width - first + second) * (height - first + second)
    return x * y / (own + other - x * y)


@pytest.mark.parametrize(("width", "height"), [(8.0, 8.0), (3.0, 20.0), (40.0, 11.0)])
def test_radius_is_the_largest_that_keeps_the_overlap(width: float, height: float) -> None:
    for overlap in (0.3, 0.7):
        r = float(gaussian_radius(torch.tensor(width).double(), torch.tensor(height).double(), overlap))
        ious = [moved_iou(width, height, *shift) for shift in ((r, r), (r, -r), (-r, r))]
        assert min(ious) == pytest.approx(overlap, abs=1e-9)


def loop_loss(outputs: Sequence, boxes: Sequence, size_weight: float, offset_weight: float) -> list[float]:
    """The sums of each image, before division by the objects."""
    (height, width), scale = CELLS, (CELLS[1] / SIZE[1], CELLS[0] / SIZE[0])
    values = []
    for channels, rows in zip(outputs, boxes, strict=True):
        heat = [[[0.0] * width for _ in range(height)] for _ in range(CLASSES)]
        free = [[[False] * width for _ in range(height)] for _ in range(CLASSES)]
        total = 0.0
        for x1, y1, x2, y2, number, kind in rows:
            if number < 0:
                continue
            left, right, top, bottom = x1 * scale[0], x2 * scale[0], y1 * scale[1], y2 * scale[1]
            w, h, cx, cy = right - left, bottom - top, (left + right) / 2, (top + bottom) / 2
            column, row = min(int(cx), width - 1), min(int(cy), height - 1)
            s, a, t = w + h, w * h, 0.3
            radius = min(
                (s - math.sqrt(s * s - 4 * a * (1 - t) / (1 + t))) / 2,
                (s - math.sqrt(s * s - 4 * a * (1 - t))) / 4,
                (math.sqrt(t * t * s * s + 4 * t * (1 - t) * a) - t * s) / (4 * t),
            )
            spread = (2 * radius + 1) / 6
            for j, i in product(range(height), range(width)):
                inside = left <= i + 0.5 <= right and top <= j + 0.5 <= bottom
                bell = math.exp(-((i - column) ** 2 + (j - row) ** 2) / (2 * spread**2))
                free[int(number)][j][i] |= bool(kind and inside)
                heat[int(number)][j][i] = max(heat[int(number)][j][i], 0 if kind else bell)
            if not kind:
                predicted = [channels[CLASSES + k][row][column] for k in range(4)]
                total += size_weight * (abs(predicted[0] - w) + abs(predicted[1] - h))
                total += offset_weight * (abs(predicted[2] - (cx - column)) + abs(predicted[3] - (cy - row)))
        for number, j in product(range(CLASSES), range(height)):
            for i in range(width):
                p, y = 1 / (1 + math.exp(-channels[number][j][i])), heat[number][j][i]
                if y == 1:
                    total -= (1 - p) ** 2 * math.log(p)
                elif not free[number][j][i]:
                    total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
        values.append(total)
    return values


@pytest.mark.parametrize("weights", [(0.1, 1.0), (0.7, 0.0)])
def test_loss_equals_plain_loops(weights: tuple[float, float]) -> None:
    outputs = torch.randn(3, CLASSES + 4, *CELLS, generator=torch.Generator().manual_seed(0)).double()
    sums = loop_loss(outputs.tolist(), BOXES.tolist(), *weights)
    value = CentreLoss(*weights)(Outputs(outputs), None, batch_of(BOXES))
    torch.testing.assert_close(value, torch.tensor(sums).double() * 3 / 3)  # three images, three objects
    single = CentreLoss(*weights)(Outputs(outputs[:1]), None, batch_of(BOXES[:1]))
    assert float(single) == pytest.approx(sums[0] / 2)
    empty = CentreLoss(*weights)(Outputs(outputs[2:]), None, batch_of(BOXES[2:]))
    assert float(empty) == pytest.approx(sums[2])


def perfect_outputs() -> Tensor:
    """Certain heat maps, and the size and offset of each object at its centre."""
    targets = CentreTargets(BOXES, CLASSES, CELLS, SIZE)
    outputs = torch.zeros(3, CLASSES + 4, CELLS[0] * CELLS[1], dtype=torch.float64)
    outputs[:, :CLASSES] = torch.where(targets.heat == 1, 60.0, -60.0).flatten(2)
    for image, row in targets.counted.nonzero().tolist():
        cell = int(targets.index[image, row])
        outputs[image, CLASSES:, cell] = torch.cat([targets.sides[image, row], targets.offset[image, row]])
    return outputs.view(3, CLASSES + 4, *CELLS)


def test_loss_is_zero_for_the_true_map() -> None:
    value = CentreLoss()(Outputs(perfect_outputs()), None, batch_of(BOXES))
    assert float(value.abs().max()) < 1e-12


def test_even_probabilities_have_a_closed_form() -> None:
    heat = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    heat[0, 0, 1, 1] = 1
    zero = torch.zeros_like(heat)
    assert float(heat_loss(zero, heat)) == pytest.approx(16 * 0.25 * math.log(2))
    free = torch.ones_like(heat, dtype=torch.bool)
    assert float(heat_loss(zero, heat, free)) == pytest.approx(0.25 * math.log(2))


def test_gradient_agrees_with_finite_differences() -> None:
    outputs = torch.randn(1, CLASSES + 4, *CELLS, generator=torch.Generator().manual_seed(1)).double()
    outputs.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: CentreLoss()(Outputs(values), None, batch_of(BOXES[:1])), outputs)


def test_inputs_that_are_no_images_are_refused(refused) -> None:
    with refused("CentreLoss needs a Batch of images"):
        CentreLoss()(torch.zeros(1, 5, 8, 8), BOXES[:1])
