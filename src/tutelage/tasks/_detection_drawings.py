"""Drawings of images with their true boxes and the detections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tutelage.data.split import Split
from tutelage.data.targets.boxes import OBJECT
from tutelage.evaluation.detection import match
from tutelage.tasks.drawing import Drawing

SCORE, IOU = 0.3, 0.5
WORST, OTHERS = 8, 4
TRUE, IGNORED, FOUND = (0, 190, 255), (150, 150, 150), (255, 130, 0)
SIDE = 480  # pixels that the longer side of a drawing has at least


def draw_detections(detections: Tensor, split: Split, classes: Sequence[str]) -> list[Drawing]:
    """The images with the most mistakes, and some of the others.

    A mistake is an object that no detection with a score of at least 0.3 finds with an IoU of 0.5, or such a detection
    without an object.

    Args:
        detections: (N, K, 6), as ``detect`` returns them, on the CPU.
        split: the images and their boxes.
        classes: the class names.
    """
    boxes = split.labels.cpu()
    certain = detections.clone()
    certain[..., 5] = detections[..., 5].where(detections[..., 4] >= SCORE, -1)
    true, ignored = (values[:, 0] for values in match(certain, boxes, thresholds=torch.tensor([IOU])))
    present = certain[..., 5] >= 0
    hits, wrong = true.sum(1), (present & ~true & ~ignored).sum(1)
    objects = ((boxes[..., 4] >= 0) & (boxes[..., 5] == OBJECT)).sum(1)
    order = (objects - hits + wrong).argsort(descending=True, stable=True)
    rest = order[WORST:]
    chosen = torch.cat([order[:WORST], rest[torch.arange(min(OTHERS, len(rest))) * len(rest) // max(OTHERS, 1)]])
    drawings = []
    for row in chosen.tolist():
        pixels = split.inputs[torch.tensor([row])][0].cpu()
        caption = (
            f"{int(objects[row])} objects: {int(hits[row])} found, {int(objects[row] - hits[row])} missed; "
            f"{int(wrong[row])} false detections (score from {SCORE:g}, IoU from {IOU:g}). Blue: label; orange: "
            "detection with its score"
        )
        drawings.append(Drawing(_draw(pixels, boxes[row], certain[row], classes), caption))
    return drawings


def _draw(pixels: Tensor, boxes: Tensor, detections: Tensor, classes: Sequence[str]) -> Tensor:
    """An image (H, W, C) uint8 with boxes drawn in, enlarged if it is small: (H', W', 3) uint8."""
    array = pixels.numpy()[..., :3]
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    factor = max(1, -(-SIDE // max(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    width = max(2, max(image.size) // 240)
    for row in boxes[boxes[:, 4] >= 0].tolist():
        draw.rectangle(_corners(row, factor), outline=TRUE if row[5] == OBJECT else IGNORED, width=2 * width)
    for row in detections[detections[:, 5] >= 0].flip(0).tolist():  # the most certain one on top
        corners = _corners(row, factor)
        draw.rectangle(corners, outline=FOUND, width=width)
        text = f"{classes[int(row[5])][:16]} {row[4]:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        x = min(corners[0], image.width - (right - left) - 2)
        y = max(corners[1] - (bottom - top) - 5, 0)
        draw.rectangle((x, y, x + right - left + 3, y + bottom - top + 5), fill=FOUND)
        draw.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0), font=font)
    return torch.from_numpy(np.array(image))


def _corners(row: Sequence[float], factor: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (factor * value for value in row[:4])
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)
