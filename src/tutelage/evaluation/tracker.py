"""One step of a tracker: where an object is, and how the response of a network to the next frame moves it.

The procedure and its constants are those of siamfc-pytorch (Bertinetto, Valmadre, Henriques, Vedaldi, Torr 2016, arXiv
1606.09549).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.frames import Frames, pair, template_side
from tutelage.data.views.squares import context_side, square_crops
from tutelage.errors import TutelageError

WINDOW = 0.176  # the weight of the window over the response
SCALES = (1.0375**-1, 1.0, 1.0375)
SCALE_PENALTY = 0.9745  # multiplies the peaks of the other scales
SCALE_RATE = 0.59  # of the change of the size
SMALLEST = 2.0  # pixels of width and height


@dataclass(frozen=True)
class Tracked:
    """Where V objects are, for L windows each.

    Attributes:
        templates: (V, C, T, T) in [0, 255].
        centres, sizes: (V, L, 2), x and y, and width and height.
        sides: (V, L), of the search crops in pixels of the frame.
        windows: (L,), the weights of the window.
        modality: of the frames.
    """

    templates: Tensor
    centres: Tensor
    sizes: Tensor
    sides: Tensor
    windows: Tensor
    modality: Frames

    @classmethod
    def start(cls, frames: Tensor, boxes: Tensor, windows: Tensor, modality: Frames) -> Tracked:
        """The state at the first boxes (V, 4)."""
        search, template = modality.search, template_side(modality.search)
        centres, sizes = ((boxes[:, :2] + boxes[:, 2:] / 2)[:, None], boxes[:, None, 2:])
        sides = context_side(sizes)
        templates = square_crops(frames, centres, sides, template)[:, 0]
        centres, sizes = (values.expand(-1, len(windows), -1) for values in (centres, sizes))
        return cls(templates, centres, sizes, (sides * (search / template)).expand(-1, len(windows)), windows, modality)

    def first(self, count: int) -> Tracked:
        """The state of the first videos."""
        parts = [values[:count] for values in (self.templates, self.centres, self.sizes, self.sides)]
        return Tracked(parts[0], parts[1], parts[2], parts[3], self.windows, self.modality)

    @property
    def boxes(self) -> Tensor:
        """(L, V, 4) boxes (x, y, w, h)."""
        return torch.cat([self.centres - self.sizes / 2, self.sizes], 2).transpose(0, 1)

    def moved(self, responses: Tensor, size: Sequence[int]) -> Tracked:
        """The state after a frame of this height and width, from responses (V, L, scales, R, R)."""
        height, width = size
        scales = torch.tensor(SCALES, device=responses.device)
        penalties = torch.where(scales == 1, 1.0, SCALE_PENALTY)
        peaks = responses.amax((3, 4)) - responses.amin((2, 3, 4))[..., None]
        chosen = (peaks * penalties).argmax(2)  # (V, L)
        response = responses.gather(2, chosen[..., None, None, None].expand(-1, -1, 1, *responses.shape[3:]))[:, :, 0]
        search = self.modality.search
        stride = (search - template_side(search)) / (response.shape[2] - 1)
        shift = _peak(response, self.windows, 2 * round(stride)) * stride  # in pixels of the search crop
        factor = scales[chosen]
        centres = self.centres + shift * (self.sides * factor / search)[..., None]
        limits = torch.stack([torch.full_like(factor, width), torch.full_like(factor, height)], 2)
        change = (1 - SCALE_RATE) + SCALE_RATE * factor
        sizes = (self.sizes * change[..., None]).clamp(min=SMALLEST)
        return Tracked(
            self.templates,
            torch.minimum(centres.clamp(min=0), limits),
            torch.minimum(sizes, limits),
            self.sides * change,
            self.windows,
            self.modality,
        )

    def responses(self, model: nn.Module, frames: Tensor) -> Tensor:
        """The responses to search crops at each scale of frames (V, C, H, W): (V, L, scales, R, R) float32.

        Raises:
            TutelageError: the network returns no such responses.
        """
        videos, lanes = self.sides.shape
        count = lanes * len(SCALES)
        sides = self.sides[..., None] * torch.tensor(SCALES, device=frames.device)
        centres = self.centres[:, :, None].expand(-1, -1, len(SCALES), -1)
        crops = square_crops(frames, centres.flatten(1, 2), sides.flatten(1), self.modality.search).flatten(0, 1)
        templates = self.templates[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        output = model(self.modality.to_input(pair(templates, crops)))
        if output.ndim != 4 or output.shape[:2] != (videos * count, 1) or output.shape[2] != output.shape[3]:
            raise TutelageError(
                f"the network returns {tuple(output.shape)} for {videos * count} pairs of crops; tracking needs "
                f"responses ({videos * count}, 1, R, R)"
            )
        responses: Tensor = output.float().view(videos, lanes, len(SCALES), *output.shape[2:])
        return responses


def _peak(response: Tensor, windows: Tensor, factor: int) -> Tensor:
    """The displacement of the peak from the centre in cells, (x, y): (V, L, R, R) to (V, L, 2)."""
    side = response.shape[2] * factor
    fine = F.interpolate(response, (side, side), mode="bicubic", align_corners=False)
    fine = fine - fine.amin((2, 3), keepdim=True)
    fine = fine / fine.sum((2, 3), keepdim=True).clamp(min=1e-16)
    hann = torch.hann_window(side, periodic=False, device=response.device)
    window = hann[:, None] * hann
    weight = windows[:, None, None]
    place = ((1 - weight) * fine + weight * (window / window.sum())).flatten(2).argmax(2)
    x, y = place % side, place.div(side, rounding_mode="floor")
    return (torch.stack([x, y], 2) - (side - 1) / 2) / factor
