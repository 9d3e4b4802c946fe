"""The loss of detectors of centre points: Zhou, Wang, Krähenbühl 2019, arXiv 1904.07850."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.targets.boxes import OBJECT
from tutelage.errors import TutelageError
from tutelage.models.centre_points import GEOMETRY
from tutelage.models.outputs import Outputs
from tutelage.terms.term import Term

OVERLAP = 0.3  # IoU that a box keeps if its corners are moved by the radius


def gaussian_radius(width: Tensor, height: Tensor, overlap: float = OVERLAP) -> Tensor:
    """How far the corners of a box may move so that its IoU with the old one is at least ``overlap``, in the worst way.

    The smallest of three solutions, for s = width + height, a = width height and t = overlap: both corners move alike,
    r = (s - sqrt(s^2 - 4 a (1 - t) / (1 + t))) / 2; both inwards, r = (s - sqrt(s^2 - 4 a (1 - t))) / 4; or both
    outwards, r = (sqrt(t^2 s^2 + 4 t (1 - t) a) - t s) / (4 t).
    """
    total, area, t = width + height, width * height, overlap
    shifted = (total - (total.square() - 4 * area * (1 - t) / (1 + t)).clamp(min=0).sqrt()) / 2
    inside = (total - (total.square() - 4 * area * (1 - t)).clamp(min=0).sqrt()) / 4
    outside = ((t * t * total.square() + 4 * t * (1 - t) * area).sqrt() - t * total) / (4 * t)
    return torch.minimum(torch.minimum(shifted, inside), outside)


class CentreTargets:
    """What a map of centre points should be for boxes, all in units of cells.

    Args:
        boxes: (B, M, 6), as ``data.targets.Boxes`` stores them, in pixels.
        num_classes: C.
        cells: (h, w) of the map.
        size: (H, W) of the images.

    Attributes:
        counted: (B, M) bool: which rows are objects that count.
        index: (B, M) int64: the cell of each centre, counted row by row; 0 where no object is.
        sides, offset: (B, M, 2): width and height, and the centre's place in its cell.
        heat: (B, C, h, w): exp(-d^2 / (2 s^2)) of the distance d to the cell of the nearest centre of the class, where
            s = (2 r + 1) / 6 with r the ``gaussian_radius`` of its box; the largest value of all objects.
        free: (B, C, h, w) bool: cells inside of an ignored box of the class, where nothing is asked.
    """

    def __init__(self, boxes: Tensor, num_classes: int, cells: tuple[int, int], size: tuple[int, int]) -> None:
        height, width = cells
        scale = boxes.new_ones(2)
        scale = torch.stack([scale[0] * (width / size[1]), scale[1] * (height / size[0])])
        first, last = boxes[..., :2] * scale, boxes[..., 2:4] * scale
        present = boxes[..., 4] >= 0
        self.counted = present & (boxes[..., 5] == OBJECT)
        self.sides = last - first
        centre = (first + last) / 2
        column = centre[..., 0].floor().clamp(0, width - 1)
        row = centre[..., 1].floor().clamp(0, height - 1)
        self.offset = centre - torch.stack([column, row], 2)
        self.index = (row * width + column).long().where(self.counted, 0)
        spread = (2 * gaussian_radius(self.sides[..., 0], self.sides[..., 1]) + 1) / 6
        x, y = (torch.arange(n, dtype=boxes.dtype, device=boxes.device) for n in (width, height))
        classes = boxes[..., 4].long().clamp(0, num_classes - 1)[..., None, None].expand(-1, -1, height, width)

        def painted(across: Tensor, down: Tensor, of: Tensor) -> Tensor:
            """The largest value of the objects of each class, (B, C, h, w), from outer products of rows and columns."""
            values = (down[..., :, None] * across[..., None, :]) * of[..., None, None]
            canvas = boxes.new_zeros(len(boxes), num_classes, height, width)
            return canvas.scatter_reduce(1, classes, values, "amax")

        def bell(positions: Tensor, middle: Tensor) -> Tensor:
            return (-0.5 * ((positions - middle[..., None]) / spread[..., None]).square()).exp()

        def inside(positions: Tensor, axis: int) -> Tensor:
            middles = positions + 0.5
            return ((middles >= first[..., axis, None]) & (middles <= last[..., axis, None])).to(boxes.dtype)

        self.heat = painted(bell(x, column), bell(y, row), self.counted.to(boxes.dtype))
        self.free = painted(inside(x, 0), inside(y, 1), (present & ~self.counted).to(boxes.dtype)) > 0


def heat_loss(logits: Tensor, heat: Tensor, free: Tensor | None = None) -> Tensor:
    """The focal loss of heat maps, summed over classes and cells: (B, C, h, w) twice to (B,).

    - sum of (1 - p)^2 log p where Y = 1, and of (1 - Y)^4 p^2 log(1 - p) elsewhere; p = s(logits), s the logistic
    function, and Y = heat. Where ``free`` is true and Y < 1 nothing is added.
    """
    p = logits.sigmoid()
    right = -(1 - p).square() * F.logsigmoid(logits)
    wrong = -((1 - heat) ** 4) * p.square() * F.logsigmoid(-logits)
    if free is not None:
        wrong = wrong.where(~free, 0.0)
    return torch.where(heat == 1, right, wrong).flatten(1).sum(1)


class CentreLoss(Term):
    """The loss of a map of centre points, per image, (B,); its mean over the batch is that of the paper:

        L = 1/N (L_heat + size_weight sum_k |s_k - S_k|_1 + offset_weight sum_k |o_k - O_k|_1)

    summed over the images of the batch, with N the objects in the batch, at least 1; so an image's value is its sum
    times B / N. s_k and o_k are read at the cell of the centre of object k. Ignored boxes (difficult ones and crowds)
    are no objects, and the heat map of their class is free inside of them. An image without objects has the heat map's
    loss alone.

    The spread of the bells is the one of ``gaussian_radius`` with an IoU of 0.3, ours. [memory]: the authors' code has
    0.7, but takes the larger solutions of the quadratic equations, which for boxes of 8 cells gives about the same.

    Args:
        size_weight: of width and height, in cells; 0.1 in the paper.
        offset_weight: of the centre's place in its cell; 1 in the paper.
    """

    reads_teacher = False

    def __init__(self, size_weight: float = 0.1, offset_weight: float = 1.0) -> None:
        super().__init__()
        self.size_weight, self.offset_weight = size_weight, offset_weight

    def mean(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """The mean over images, (): a cell of the map is no sample of its own."""
        return self(student, teacher, batch).mean()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,)."""
        batch = self.required(batch, "the batch, for its boxes")
        outputs, boxes = student["logits"], batch.targets.to(student["logits"].dtype)
        if batch.inputs.ndim != 4 or boxes.ndim != 3:
            raise TutelageError(
                f"CentreLoss needs a Batch of images (B, C, H, W) and boxes (B, M, 6), got inputs "
                f"{tuple(batch.inputs.shape)} and labels {tuple(boxes.shape)}; pass Batch(images, boxes, index, None)"
            )
        heat, geometry = outputs[:, :-GEOMETRY], outputs[:, -GEOMETRY:].flatten(2)
        height, width = batch.inputs.shape[-2:]
        targets = CentreTargets(boxes, heat.shape[1], (heat.shape[2], heat.shape[3]), (height, width))
        at_centres = geometry.gather(2, targets.index[:, None].expand(-1, GEOMETRY, -1)).transpose(1, 2)
        counted = targets.counted[..., None]
        sides = (at_centres[..., :2] - targets.sides).abs().where(counted, 0.0).sum((1, 2))
        offset = (at_centres[..., 2:] - targets.offset).abs().where(counted, 0.0).sum((1, 2))
        total = heat_loss(heat, targets.heat, targets.free) + self.size_weight * sides + self.offset_weight * offset
        return total * (len(boxes) / targets.counted.sum().clamp(min=1))
