"""Videos of a handwritten digit that moves among others over a textured background."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Split, open_data
from tutelage.data.frames import Frames
from tutelage.data.targets import Track

SIDE = 96  # pixels of a frame
GLYPH = 18.0  # pixels of a digit
TURNS = 0.9  # how much of the velocity is that of the last frame
GROWTH = 0.02  # a frame; scales stay between 0.9 and 1.1
NOISE = 12.0


@dataclass(frozen=True)
class Difficulty:
    """How hard it is to follow the object.

    Attributes:
        distractors: the number of other digits.
        speed: pixels a frame.
        rotation: degrees a frame, of a random walk; each digit starts upright.
    """

    distractors: int = 4
    speed: float = 2.0
    rotation: float = 0.0


def glyph_videos(
    videos: int, frames: int, seed: int, part: str, first: int = 0, difficulty: Difficulty = Difficulty()
) -> Split:
    """Grey videos, 96 x 96; digits of different parts have no image in common.

    Args:
        videos, frames: how many.
        seed: of digits, paths, backgrounds and noise.
        part: ``train``, ``validation`` or ``test``, a third of the images of digits each.
        first: the number of the first video.
        difficulty: of all videos.
    """
    generator = torch.Generator().manual_seed(seed)
    digits = open_data("digits")
    assert isinstance(digits.train.inputs, Tensor)
    images = digits.train.inputs[["train", "validation", "test"].index(part) :: 3]
    pixels = _background(videos, frames, generator)
    for _ in range(difficulty.distractors + 1):  # the object is the last one, over the others
        chosen = images[torch.randint(len(images), (videos,), generator=generator)]
        centres, sides = _paths(videos, frames, difficulty.speed, generator)
        angles = _angles(videos, frames, difficulty.rotation, generator)
        glyphs = _placed(chosen[:, None, :, :, 0].expand(-1, frames, -1, -1).flatten(0, 1), centres, sides, angles)
        brightness = (160 + 80 * torch.rand(videos, 1, 1, 1, generator=generator)).expand(-1, frames, -1, -1)
        pixels = pixels * (1 - glyphs) + brightness.flatten(0, 1) * glyphs
    pixels = pixels + NOISE * torch.randn(pixels.shape, generator=generator)
    boxes = torch.cat([centres - sides[:, None] / 2, sides[:, None].expand(-1, 2)], 1)
    numbers = torch.stack(torch.meshgrid(torch.arange(videos) + first, torch.arange(frames), indexing="ij"), 2)
    labels = torch.cat([numbers.flatten(0, 1).float(), boxes], 1)
    return Split.of(pixels.round().clamp(0, 255).to(torch.uint8)[..., None], labels, Frames(), Track())


def _background(videos: int, frames: int, generator: torch.Generator) -> Tensor:
    """A smooth random texture for each video: (videos x frames, H, W)."""
    coarse = torch.rand(videos, 1, 12, 12, generator=generator)
    texture = 100 * F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    return texture.expand(-1, frames, -1, -1).flatten(0, 1)


def _paths(videos: int, frames: int, speed: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres (N, 2) and sides (N,) of a digit with a smooth random velocity, reflected at the rim."""
    low, high = GLYPH * 0.6, SIDE - GLYPH * 0.6
    place = low + (high - low) * torch.rand(videos, 2, generator=generator)
    velocity = speed * torch.randn(videos, 2, generator=generator)
    scale = torch.ones(videos)
    centres, sides = [], []
    for _ in range(frames):
        centres.append(place)
        sides.append(GLYPH * scale)
        push = speed * (1 - TURNS**2) ** 0.5
        velocity = TURNS * velocity + push * torch.randn(videos, 2, generator=generator)
        moved = place + velocity
        outside = (moved < low) | (moved > high)
        velocity = torch.where(outside, -velocity, velocity)
        place = moved.clamp(low, high)
        scale = (scale + GROWTH * torch.randn(videos, generator=generator)).clamp(0.9, 1.1)
    return torch.stack(centres, 1).flatten(0, 1), torch.stack(sides, 1).flatten()


def _angles(videos: int, frames: int, rotation: float, generator: torch.Generator) -> Tensor | None:
    """The angles (N,) of a digit, in radians; ``None`` for digits that do not turn."""
    if not rotation:
        return None
    steps = rotation * math.pi / 180 * torch.randn(videos, frames, generator=generator)
    steps[:, 0] = 0
    return steps.cumsum(1).flatten()


def _placed(glyphs: Tensor, centres: Tensor, sides: Tensor, angles: Tensor | None) -> Tensor:
    """How much each pixel of a frame is covered by its digit: (N, 8, 8) uint8 to (N, H, W) in [0, 1]."""
    steps = torch.arange(SIDE) + 0.5
    x, y = (2 * (steps - centres[:, axis, None]) / sides[:, None] for axis in range(2))
    grid = torch.stack([x[:, None, :].expand(-1, SIDE, -1), y[:, :, None].expand(-1, -1, SIDE)], 3)
    if angles is not None:
        cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
        grid = torch.stack(
            [cosine * grid[..., 0] - sine * grid[..., 1], sine * grid[..., 0] + cosine * grid[..., 1]], 3
        )
    covered = F.grid_sample(glyphs[:, None].float() / 255, grid, align_corners=False)[:, 0]
    return covered / covered.amax((1, 2), keepdim=True).clamp(min=1e-6)
