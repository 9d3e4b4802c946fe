"""Eye movements of people on 500 photographs (NUS Scene), for experiments on saliency."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from experiments.paired import ROOT
from tutelage.data import CropsAndFlips, Data, Maps, Split
from tutelage.data.formats.fixations import SHARE_OF_DEGREE, fixation_planes

FILE = ROOT / "runs" / "data" / "saliency.npz"
SIDE = 64  # pixels; photographs of other shapes are scaled to a square, with their fixations
SIGMA = SHARE_OF_DEGREE * SIDE


@functools.cache
def photographs() -> Data:
    """400 training and 100 test photographs, 64 x 64 pixels, with the maps of the fixations of all people."""
    arrays = _arrays()
    splits = []
    for number in (0, 2):
        chosen = np.flatnonzero(arrays["split"] == number).tolist()
        pairs = [(_image(index), fixation_planes(_points(index)[0], (SIDE, SIDE), SIGMA)) for index in chosen]
        images, labels = zip(*pairs, strict=True)
        splits.append(Split.of(torch.stack(images), torch.stack(labels), targets=Maps()))
    train, test = splits
    return Data("photographs", ("saliency",), train, test, views=CropsAndFlips(pad=0, flip=True))


def halves(seed: int) -> tuple[Tensor, Tensor]:
    """The maps (N, 2, H, W) of the test photographs of two halves of the people, drawn for each photograph."""
    generator = torch.Generator().manual_seed(seed)
    maps: list[list[Tensor]] = [[], []]
    for index in np.flatnonzero(_arrays()["split"] == 2).tolist():
        points, people = _points(index)
        present = torch.unique(people)
        first = present[torch.randperm(len(present), generator=generator)[: len(present) // 2]]
        inside = torch.isin(people, first)
        for part, chosen in zip(maps, (inside, ~inside), strict=True):
            part.append(fixation_planes(points[chosen], (SIDE, SIDE), SIGMA))
    return torch.stack(maps[0]), torch.stack(maps[1])


@functools.cache
def _arrays() -> dict[str, NDArray[Any]]:
    return dict(np.load(FILE))


def _image(index: int) -> Tensor:
    """A photograph, (64, 64, 3) uint8."""
    height, width = _arrays()["sizes"][index]
    pixels = torch.from_numpy(_arrays()["images"][index, :height, :width]).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0]
    return scaled.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def _points(index: int) -> tuple[Tensor, Tensor]:
    """Fixations (K, 2) of a photograph, in pixels of the scaled one, and the numbers of the people (K,)."""
    arrays = _arrays()
    start, end = arrays["fixation_offsets"][index : index + 2]
    height, width = arrays["sizes"][index]
    points = torch.from_numpy(arrays["fixations"][start:end, :2]).double()
    people = torch.from_numpy(arrays["subjects"][start:end]).long()
    return points * SIDE / torch.tensor([width, height]), people
