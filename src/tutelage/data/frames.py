"""Frames of videos, and the pairs of crops that networks for tracking take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.modality import MeanStd, Pixels
from tutelage.data.targets.track import box_of, visible
from tutelage.data.views.draws import Draws
from tutelage.data.views.many_views import ManyViews
from tutelage.data.views.protocol import Views
from tutelage.data.views.squares import context_side, square_crops
from tutelage.errors import TutelageError

SEARCH = 127
"""The default side of search crops in pixels; that of AlexNet's geometry is 255."""


def template_side(search: int) -> int:
    """The side of the template crop that belongs to a search crop: 63 for 127, 127 for 255."""
    return (search - 1) // 2


def pair(template: Tensor, search: Tensor) -> Tensor:
    """One input of crops side by side: (B, C, T, T) and (B, C, S, K S) to (B, C, S, K S + T).

    On the left are the K search crops, in training 1; the template is in the upper right corner, above zeros.
    """
    return torch.cat([search, F.pad(template, (0, 0, 0, search.shape[2] - template.shape[2]))], 3)


def crops_of(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The templates (B, C, T, T) and the search crops (B K, C, S, S) of inputs (B, C, S, K S + T), see ``pair``.

    The K search crops of a template follow each other.

    Raises:
        TutelageError: the inputs are no such crops.
    """
    side = inputs.shape[2]
    template = template_side(side)
    count, rest = divmod(inputs.shape[3] - template, side)
    if count < 1 or rest:
        raise TutelageError(
            f"a network for tracking takes pairs of crops (B, C, S, S + T) with T = (S - 1) / 2, such as 127 x 190 "
            f"pixels, and got {side} x {inputs.shape[3]}; give it frames of videos"
        )
    search = inputs[..., : count * side]
    if count > 1:
        search = torch.stack(torch.split(search, side, 3), 1).flatten(0, 1)
    return inputs[..., :template, count * side :], search


@dataclass(frozen=True, slots=True)
class FramePairs(ManyViews):
    """Numbered pairs of crops: a template from one frame and a search crop from another frame of the same video.

    View ``v`` of frame ``i`` is always the same pair. The search crop shows frame ``i``, the template a frame that is
    drawn among those less than ``gap`` frames away; a frame whose object is out of sight is replaced by the nearest one
    in which it is visible. With the sides s of ``context_side``, the template is the square of side s around its box,
    scaled to T = (S - 1) / 2 pixels, and the search crop that of side s S / T, times a random factor, around a random
    point near the centre of its box, scaled to S. Outside of a frame is its mean colour. In view 0 both crops show
    frame ``i``, unchanged and centred.

    Attributes:
        search: S, in pixels.
        gap: the template is less than so many frames away.
        shift: the largest distance of the box's centre from the search crop's, along each axis, as a share of S.
        stretch: the factor of the search crop's side lies in [1 - stretch, 1 + stretch].
    """

    search: int = SEARCH
    gap: int = 100
    shift: float = 1 / 16
    stretch: float = 0.05

    def __post_init__(self) -> None:
        ManyViews.__post_init__(self)
        if self.gap < 1 or not 0 <= self.shift < 0.5 or not 0 <= self.stretch < 1:
            raise TutelageError(
                f"pairs of frames need a gap of 1 or more, a shift in [0, 0.5) and a stretch in [0, 1), got "
                f"{self.gap}, {self.shift} and {self.stretch}"
            )

    def __call__(self, stored: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """Unsupported: a pair needs the boxes.

        Raises:
            TutelageError: always.
        """
        raise TutelageError("a pair of crops needs the boxes of two frames; use joined")

    def region(self, size: tuple[int, int], view: Tensor, index: Tensor) -> Tensor:
        """Unsupported: a pair shows parts of two frames.

        Raises:
            TutelageError: always.
        """
        raise TutelageError("pairs of crops show two frames, so labels cannot move with them; use joined")

    def settings(self) -> dict[str, Any]:
        """The name and the fields."""
        return {"views": "pairs of frames", **self.plain_fields()}

    def members(self, labels: Tensor, rows: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """The rows of the template's and of the search crop's frame: (...,) int64 each to (..., 2) int64.

        Args:
            labels: (N, 6), of all frames.
            rows: the frames whose views are requested.
            view, index: their views and their numbers.
        """
        shape, rows = rows.shape, rows.flatten()
        frames = labels[:, 1].long()
        width = 2 * int(frames.max()) + self.gap + 2  # so that other videos are further away than any frame of this one
        keys = labels[:, 0].long() * width + frames
        seen = visible(labels).nonzero()[:, 0]
        seen = seen[keys[seen].argsort()]
        seen_keys, own = keys[seen], keys[rows]
        after = torch.searchsorted(seen_keys, own).clamp_(max=len(seen) - 1)
        before = (after - 1).clamp_(min=0)
        nearest = torch.where((seen_keys[before] - own).abs() < (seen_keys[after] - own).abs(), before, after)
        low = torch.searchsorted(seen_keys, own - (self.gap - 1))
        high = torch.searchsorted(seen_keys, own + (self.gap - 1), right=True)
        draws = Draws.of(view.flatten(), index.flatten(), 0).uniform()
        drawn = low + (draws * (high - low)).long()
        drawn = torch.where((high > low) & (view.flatten() != self.identity), drawn.clamp_(max=len(seen) - 1), nearest)
        return seen[torch.stack([drawn, nearest], 1)].view(*shape, 2)

    def joined(self, stored: Tensor, labels: Tensor, view: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs of these frames, and the box of the object in the search crop.

        Args:
            stored: (B, 2, H, W, C) uint8, the frames of the template and of the search crop.
            labels: (B, 2, 6).
            view, index: (B,) int64.

        Returns:
            (B, C, S, S + T) float32 in [0, 255], and the boxes (x, y, w, h) in pixels of the search crop, (B, 4).
        """
        frames = stored.permute(0, 1, 4, 2, 3).float()
        boxes = box_of(labels)
        centres, sizes = boxes[..., :2] + boxes[..., 2:] / 2, boxes[..., 2:]
        sides, template = context_side(sizes), template_side(self.search)
        draws = Draws.of(view, index, 1)
        changed = (view != self.identity).float()
        shift = torch.stack([draws.uniform(-self.shift, self.shift) for _ in range(2)], 1) * changed[:, None]
        side = sides[:, 1] * (self.search / template) * (1 + changed * draws.uniform(-self.stretch, self.stretch))
        centre = centres[:, 1] - shift * side[:, None]
        inputs = pair(
            square_crops(frames[:, 0], centres[:, :1], sides[:, :1], template)[:, 0],
            square_crops(frames[:, 1], centre[:, None], side[:, None], self.search)[:, 0],
        )
        size = sizes[:, 1] * (self.search / side)[:, None]
        return inputs, torch.cat([(shift + 0.5) * self.search - size / 2, size], 1)


@dataclass(frozen=True, slots=True)
class Frames(Pixels):
    """Frames of videos (H, W, C) uint8; networks take pairs of crops (C, S, S + T) float32 in [0, 1], see ``pair``.

    Attributes:
        search: S, the side of search crops in pixels; the side of templates is T = (S - 1) / 2.
    """

    search: int = SEARCH

    noun: ClassVar[str] = "frames of videos"
    sample: ClassVar[str] = "pair of crops"

    def __post_init__(self) -> None:
        if self.search < 15 or self.search % 4 != 3:
            raise TutelageError(
                f"the side of search crops must be 15, 19, 23 pixels and so on, such as 127 or 255, got {self.search}"
            )

    @property
    def unaugmented(self) -> Views:  # type: ignore[override]
        """Pairs of crops of one frame, centred and unchanged."""
        return FramePairs(self.search, gap=1, shift=0.0, stretch=0.0, limit=1)

    def augmented(self, stored: tuple[int, ...]) -> Views:
        """Pairs of frames."""
        return FramePairs(self.search)

    def named_views(self, name: str, stored: tuple[int, ...]) -> Views:
        """None of the augmentations of images."""
        raise TutelageError(f"the augmentation {name} is for images, and these are {self.noun}; leave it out")

    def arrange(self, stored: Tensor) -> Tensor:
        """(B, C, S, S + T), as pairs are joined."""
        return stored

    def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W, C) to (C, S, S + T)."""
        return stored[2], self.search, self.search + template_side(self.search)

    def mean_std(self, batches: Iterator[Tensor]) -> MeanStd:
        """Of the pixels in [0, 1], each (C,); a few frames at a time, since frames are large."""
        return Pixels.mean_std(self, (frames for batch in batches for frames in torch.split(batch, 64)))
