"""One step of a tracker: where an object is, and how the response of a network to the next frame moves it.

The procedure and its constants are those of siamfc-pytorch (Bertinetto, Valmadre, Henriques, Vedaldi, Torr 2016, arXiv
1606.09549).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.data.frames import Frames, pair, template_side
from tutelage.data.views.squares import context_side, square_crops
from tutelage.errors import TutelageError
from tutelage.models.tapped import Tapped

WINDOW = 0.176  # the weight of the window over the response
SCALES = (1.0375**-1, 1.0, 1.0375)
SCALE_PENALTY = 0.9745  # multiplies the peaks of the other scales
SCALE_RATE = 0.59  # of the change of the size
SMALLEST = 2.0  # pixels of width and height


@dataclass(frozen=True)
class Tracked:
    """Where V objects are.

    Attributes:
        templates: (V, C, T, T) in [0, 255].
        centres, sizes: (V, 2), x and y, and width and height.
        sides: (V,), of the search crops in pixels of the frame.
        window: its weight.
        modality: of the frames.
    """

    templates: Tensor
    centres: Tensor
    sizes: Tensor
    sides: Tensor
    window: float
    modality: Frames

    @classmethod
    def start(cls, frames: Tensor, boxes: Tensor, window: float, modality: Frames) -> Tracked:
        """The state at the first boxes (V, 4)."""
        search, template = modality.search, template_side(modality.search)
        centres, sizes = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]
        sides = context_side(sizes)
        templates = square_crops(frames, centres[:, None], sides[:, None], template)[:, 0]
        return cls(templates, centres, sizes, sides * (search / template), window, modality)

    def first(self, count: int) -> Tracked:
        """The state of the first videos."""
        templates, centres, sizes, sides = (
            values[:count] for values in (self.templates, self.centres, self.sizes, self.sides)
        )
        return replace(self, templates=templates, centres=centres, sizes=sizes, sides=sides)

    @property
    def boxes(self) -> Tensor:
        """(V, 4) boxes (x, y, w, h)."""
        return torch.cat([self.centres - self.sizes / 2, self.sizes], 1)

    def moved(self, responses: Tensor, size: Sequence[int]) -> Tracked:
        """The state after a frame of this height and width, from responses (V, scales, R, R)."""
        height, width = size
        scales = torch.tensor(SCALES, device=responses.device)
        penalties = torch.where(scales == 1, 1.0, SCALE_PENALTY)
        peaks = responses.amax((2, 3)) - responses.amin((1, 2, 3))[:, None]
        chosen = (peaks * penalties).argmax(1)  # (V,)
        response = responses.gather(1, chosen[:, None, None, None].expand(-1, 1, *responses.shape[2:]))[:, 0]
        search = self.modality.search
        stride = (search - template_side(search)) / (response.shape[2] - 1)
        shift = _peak(response, self.window, 2 * round(stride)) * stride  # in pixels of the search crop
        factor = scales[chosen]
        centres = self.centres + shift * (self.sides * factor / search)[:, None]
        limits = torch.stack([torch.full_like(factor, width), torch.full_like(factor, height)], 1)
        change = (1 - SCALE_RATE) + SCALE_RATE * factor
        sizes = (self.sizes * change[:, None]).clamp(min=SMALLEST)
        return replace(
            self,
            centres=torch.minimum(centres.clamp(min=0), limits),
            sizes=torch.minimum(sizes, limits),
            sides=self.sides * change,
        )

    def responses(self, model: nn.Module, frames: Tensor) -> Tensor:
        """The responses to search crops at each scale of frames (V, C, H, W): (V, scales, R, R) float32.

        A network with an attribute ``many_crops`` that is true gets all search crops of a video in one input, so that
        it computes the template's features once; others get one pair for each.

        Raises:
            TutelageError: the network returns no such responses.
        """
        videos, count = len(frames), len(SCALES)
        sides = self.sides[:, None] * torch.tensor(SCALES, device=frames.device)
        centres = self.centres[:, None].expand(-1, count, -1)
        crops = square_crops(frames, centres, sides, self.modality.search)
        shared = _takes_many_crops(model)
        if shared:
            inputs = pair(self.templates, crops.permute(0, 2, 3, 1, 4).flatten(3))
        else:
            templates = self.templates[:, None].expand(-1, count, -1, -1, -1)
            inputs = pair(templates.flatten(0, 1), crops.flatten(0, 1))
        output = model(self.modality.to_input(inputs))
        expected = (videos, count) if shared else (videos * count, 1)
        if output.ndim != 4 or output.shape[:2] != expected or output.shape[2] != output.shape[3]:
            raise TutelageError(
                f"the network returns {tuple(output.shape)} for {videos * count} search crops; tracking needs "
                f"responses ({', '.join(map(str, expected))}, R, R)"
            )
        responses: Tensor = output.float().view(videos, count, *output.shape[2:])
        return responses


def _takes_many_crops(model: nn.Module) -> bool:
    """Whether a network computes a template's features once for several search crops beside it."""
    if isinstance(model, Tapped):
        return model.size is None and _takes_many_crops(model.module)  # a size is that of one search crop
    return bool(getattr(model, "many_crops", False))


def _peak(response: Tensor, weight: float, factor: int) -> Tensor:
    """The displacement of the peak from the centre in cells, (x, y): (V, R, R) to (V, 2)."""
    side = response.shape[2] * factor
    fine = F.interpolate(response[:, None], (side, side), mode="bicubic", align_corners=False)[:, 0]
    fine = fine - fine.amin((1, 2), keepdim=True)
    fine = fine / fine.sum((1, 2), keepdim=True).clamp(min=1e-16)
    hann = torch.hann_window(side, periodic=False, device=response.device)
    window = hann[:, None] * hann
    place = ((1 - weight) * fine + weight * (window / window.sum())).flatten(1).argmax(1)
    x, y = place % side, place.div(side, rounding_mode="floor")
    return (torch.stack([x, y], 1) - (side - 1) / 2) / factor
