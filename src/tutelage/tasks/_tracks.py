"""Frames of a video with the true and the predicted box of its object, drawn side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.data import Split
from tutelage.data.targets.track import box_of, visible

HEIGHT = 160  # pixels
DRAWN = 3  # frames of a video
WORST = 3  # videos
TRUE, PREDICTED = (50, 200, 90), (235, 70, 60)

Respond = Callable[[int, int, Tensor], tuple[Tensor, Tensor]]
"""The row of a video's first frame, that of another, and a box in it, to a search crop and its response."""


def selected(overlaps: Tensor) -> list[int]:
    """The positions of the three lowest values, of the median and of the highest one: (V,) to at most 5."""
    order = overlaps.argsort().tolist()
    return list(dict.fromkeys([*order[:WORST], *order[len(order) // 2 : len(order) // 2 + 1], *order[-1:]]))


def sheet(split: Split, boxes: Tensor, video: int, respond: Respond) -> Tensor:
    """Three frames of a video with the true box in green and the predicted one in red: (H, W, 3) uint8.

    At the lower right is the search crop around the predicted box of the last of these frames; the higher the response
    to a place, the redder it is.

    Args:
        split: frames and true boxes.
        boxes: (N, 4), the predicted ones.
        video: its number.
        respond: makes the response.
    """
    labels = split.labels.cpu()
    rows = (labels[:, 0] == video).nonzero()[:, 0]
    rows = rows[labels[rows, 1].argsort()]
    seen = rows[visible(labels[rows])]
    drawn = seen[torch.linspace(min(1, len(seen) - 1), len(seen) - 1, DRAWN).round().long()]
    images = []
    for row in drawn:
        image = _coloured(split.inputs[row[None]][0].cpu())
        for box, colour in ((box_of(labels[row]), TRUE), (boxes[row], PREDICTED)):
            outline(image, box.tolist(), colour, max(1, image.shape[0] // 120))
        images.append(image)
    crop, response = respond(int(seen[0]), int(drawn[-1]), boxes[drawn[-1]])
    tiles = [_scaled(image) for image in (*images, heated(_coloured(crop), response))]
    width = max(tile.shape[1] for tile in tiles)
    tiles = [F.pad(tile, (0, 0, 0, width - tile.shape[1]), value=255) for tile in tiles]
    return torch.cat([torch.cat(tiles[row : row + 2], 1) for row in (0, 2)])


def outline(image: Tensor, box: Sequence[float], colour: Sequence[int], thickness: int) -> None:
    """Draw the outline of a box (x, y, w, h) into an image (H, W, 3) uint8."""
    height, width = image.shape[:2]
    x, y, w, h = (round(value) for value in box)
    left, right = max(x, 0), min(x + w, width)
    top, bottom = max(y, 0), min(y + h, height)
    rows, columns = slice(top, max(bottom, top)), slice(left, max(right, left))
    value = torch.tensor(colour, dtype=torch.uint8)
    for edge in (y, y + h - thickness):
        image[max(edge, 0) : max(edge + thickness, 0), columns] = value
    for edge in (x, x + w - thickness):
        image[rows, max(edge, 0) : max(edge + thickness, 0)] = value


def heated(image: Tensor, response: Tensor) -> Tensor:
    """A square image (S, S, 3) uint8, redder where its response (R, R) is high.

    The response belongs to the middle of the image: the template must lie within the search crop.
    """
    side = image.shape[0]
    heat = (response - response.min()) / (response.max() - response.min()).clamp(min=1e-12)
    middle = round(side / 2 * response.shape[0] / (response.shape[0] - 1))  # 16 of 17 steps are half of the side
    scaled = F.interpolate(heat[None, None], (middle, middle), mode="bilinear", align_corners=False)[0, 0]
    before = (side - middle) // 2
    mask = F.pad(scaled, (before, side - middle - before, before, side - middle - before))[..., None]
    colour = torch.tensor(PREDICTED, dtype=torch.float32)
    return (image * (1 - 0.7 * mask) + colour * (0.7 * mask)).round().to(torch.uint8)


def _coloured(image: Tensor) -> Tensor:
    """(H, W, C) uint8 to (H, W, 3) uint8, a copy."""
    return image[..., :3].clone() if image.shape[2] >= 3 else image[..., :1].repeat(1, 1, 3)


def _scaled(image: Tensor) -> Tensor:
    """An image of 160 pixels in height, with a white rim at the right and below: (H, W, 3) to (164, W', 3) uint8."""
    width = max(1, round(image.shape[1] * HEIGHT / image.shape[0]))
    planes = F.interpolate(image.permute(2, 0, 1)[None].float(), (HEIGHT, width), mode="bilinear", antialias=True)
    pixels = planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
    return F.pad(pixels, (0, 0, 0, 4, 0, 4), value=255)
