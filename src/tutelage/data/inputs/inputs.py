"""Samples to predict: what they are called, how they are read, and where they belong in their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.split import Split


@dataclass(frozen=True, eq=False)
class Inputs:
    """N samples to predict: image files, texts or videos.

    Attributes:
        noun: what one of them is called in tables: ``file``, ``text`` or ``video``.
        names: the name of each one in tables; of a text the text itself.
        split: what the network gets; a video has several samples in it.
        outputs: the path of the file of each prediction, without suffix, below the folder of all; none for texts.
        counts: (N,) int64, how many samples of the split each one has.
        sizes: (N, 2) int64, the size (H, W) of each upright image in pixels; empty for others.
        views: (N, 4) float64, the part of each image that the network gets, which may reach outside of it: left, top,
            width and height in pixels; empty for others.
        ids: of images: those in the COCO file that lists them, or their numbers from 1.
        categories: the ids of the classes in that file, by name.
        unreadable: files that cannot be decoded and were left out.
    """

    noun: str
    names: tuple[str, ...]
    split: Split
    outputs: tuple[str, ...]
    counts: Tensor
    sizes: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    views: Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.float64))
    ids: tuple[int | str, ...] = ()
    categories: Mapping[str, int | str] = field(default_factory=dict)
    unreadable: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def parts(self, size: int) -> Iterator[Inputs]:
        """These inputs in parts of at most ``size``, in order."""
        ends = self.counts.cumsum(0).tolist()
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            rows = torch.arange(ends[start - 1] if start else 0, ends[min(start + size, len(self)) - 1])
            yield replace(
                self,
                names=self.names[part],
                split=self.split.subset(rows),
                outputs=self.outputs[part],
                counts=self.counts[part],
                sizes=self.sizes[part],
                views=self.views[part],
                ids=self.ids[part],
            )
