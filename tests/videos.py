"""Small videos of one moving square."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tutelage.data import Data
from tutelage.data.frames import Frames
from tutelage.data.targets import Track

SIDE = 12  # of the square, in pixels


def moving_squares(
    videos: int = 4, frames: int = 6, size: tuple[int, int] = (48, 64), seed: int = 0, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Frames (N, H, W, 1) uint8 and labels (N, 6): a textured square that moves by at most 3 pixels a frame."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    pixels = torch.randint(0, 60, (videos * frames, height, width, 1), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(videos * frames, 6)
    room = torch.tensor([width - SIDE, height - SIDE])
    for video in range(videos):
        square = torch.randint(120, 255, (SIDE, SIDE, 1), generator=generator, dtype=torch.uint8)
        place = (torch.rand(2, generator=generator) * room).round().long()
        for frame in range(frames):
            x, y = place.tolist()
            pixels[video * frames + frame, y : y + SIDE, x : x + SIDE] = square
            labels[video * frames + frame] = torch.tensor([first + video, frame, x, y, SIDE, SIDE])
            step = torch.randint(-3, 4, (2,), generator=generator)
            place = torch.minimum((place + step).clamp(min=0), room)
    return pixels, labels


def square_videos(videos: int = 4, frames: int = 6, search: int = 127) -> Data:
    """A data set of three splits with as many videos each."""
    splits = [moving_squares(videos, frames, seed=number, first=number * videos) for number in range(3)]
    train, validation, test = splits
    return Data.from_arrays(
        train, test, validation, name="squares", modality=Frames(search), targets=Track(), classes=("object",)
    )


def write_frames(folder: Path, pixels: Tensor, digits: int = 4, start: int = 1) -> Path:
    """Write frames (T, H, W, 1) uint8 as 0001.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(pixels, start):
        Image.fromarray(frame[..., 0].numpy()).save(folder / f"{number:0{digits}}.png")
    return folder


def write_boxes(file: Path, boxes: Tensor, separator: str = ",") -> Path:
    """Write boxes (T, 4) with coordinates from 0 as a text file with coordinates from 1."""
    rows = boxes + torch.tensor([1.0, 1.0, 0.0, 0.0])
    file.write_text("".join(separator.join(f"{value:g}" for value in row) + "\n" for row in rows.tolist()))
    return file
