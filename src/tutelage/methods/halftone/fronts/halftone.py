"""Halftoning of a network's input: the grey value becomes the density of dots (Huang, Liao, Huang, ICPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import TutelageError, unknown
from tutelage.methods.halftone.diffusion import KERNELS, Threshold, diffused, nearest_level, soft_level
from tutelage.text import value_text

Operator = Literal["floyd_steinberg", "jarvis", "bayer", "random"]
Training = Literal["plain", "halftone", "hybrid"]

_IN_TRAINING: Mapping[Training, slice] = MappingProxyType(
    {"plain": slice(0, 0), "halftone": slice(None), "hybrid": slice(None, None, 2)}
)
"""The rows of a batch that are halftoned in train mode."""

BLUR = 1.0  # standard deviation of the surrogate "blur", in pixels
_REACH = 3  # pixels of its kernel on each side


class Halftone(nn.Module):
    """Replaces each channel of an image by dots of ``levels`` values, whose local mean is the grey value.

    Pixels p in [0, 1], computed from the normalised input, are first repeated ``factor`` times along both axes. Then

    - "floyd_steinberg" and "jarvis" diffuse errors (``diffused``) of o = the nearest level of v, for two levels
      o = 1 if v >= 0.5 else 0;
    - "bayer" is an ordered dither: o = 1 if p > (B + 0.5) / 64, with B the 8 x 8 Bayer matrix;
    - "random" has a threshold drawn from U(0, 1) for each pixel and pass, also in eval mode.

    With more levels, the last two round p + (0.5 - threshold) / (levels - 1).

    It is constant almost everywhere, so its gradient is 0. It declares three surrogate gradients for attacks: "soft",
    the same operator with sigmoids in place of steps, which is the slowest and the strongest in our experiment;
    "blur", a Gaussian of ``BLUR`` pixels; "identity".

    Args:
        operator, levels, serpentine, factor: see above; ``serpentine`` is the scan of error diffusion.
        training: which rows of a batch are halftoned in train mode, all ("halftone"), every second one ("hybrid") or
            none ("plain"); in eval mode all are.
        mean, std: the normalisation of the input, (C,).
    """

    mean: Tensor
    std: Tensor
    bayer: Tensor

    def __init__(
        self,
        operator: Operator,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        levels: int = 2,
        serpentine: bool = False,
        factor: int = 1,
        training: Training = "halftone",
    ) -> None:
        super().__init__()
        self.operator, self.levels, self.serpentine = operator, levels, serpentine
        self.factor, self.training_mode, self.is_random = factor, training, operator == "random"
        self.register_buffer("mean", torch.tensor(list(mean))[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(list(std))[:, None, None], persistent=False)
        self.register_buffer("bayer", (bayer_matrix(3) + 0.5) / 64, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to (B, C, factor H, factor W), normalised."""
        result = self.enlarged(images).clone()
        rows = _IN_TRAINING[self.training_mode] if self.training else slice(None)
        with torch.no_grad():
            dots = self._dots(result[rows], partial(nearest_level, levels=self.levels))
        result[rows] = dots
        return result

    @property
    def surrogates(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The declared surrogate gradients, the default first."""
        soft = partial(soft_level, levels=self.levels)
        return {
            "soft": lambda images: self._dots(self.enlarged(images), soft),
            "blur": lambda images: blurred(self.enlarged(images), BLUR),
            "identity": self.enlarged,
        }

    def enlarged(self, images: Tensor) -> Tensor:
        """Each pixel repeated ``factor`` times along both axes."""
        if self.factor == 1:
            return images
        return images.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def _dots(self, images: Tensor, threshold: Threshold) -> Tensor:
        dtype = images.dtype if images.dtype == torch.float64 else torch.float32
        mean, std = self.mean.to(dtype), self.std.to(dtype)
        dots = self._halftoned(images.to(dtype) * std + mean, threshold)
        return ((dots - mean) / std).to(images.dtype)

    def _halftoned(self, pixels: Tensor, threshold: Threshold) -> Tensor:
        if self.operator in KERNELS:
            dots: Tensor = diffused(pixels, KERNELS[self.operator], threshold, serpentine=self.serpentine)[0]
            return dots
        if self.operator == "bayer":
            height, width = pixels.shape[2:]
            tiles = self.bayer.to(pixels).repeat(math.ceil(height / 8), math.ceil(width / 8))
            thresholds = tiles[:height, :width]
        else:
            thresholds = 1 - torch.rand(pixels.shape, dtype=pixels.dtype, device=pixels.device)  # in (0, 1]
        return threshold(pixels + (0.5 - thresholds) / (self.levels - 1))


def bayer_matrix(doublings: int) -> Tensor:
    """The Bayer matrix of 2^n rows and columns: M_2n = [[4 M_n, 4 M_n + 2], [4 M_n + 3, 4 M_n + 1]], M_1 = 0."""
    matrix = torch.zeros(1, 1)
    for _ in range(doublings):
        upper, lower = (torch.cat([4 * matrix + one, 4 * matrix + other], 1) for one, other in ((0, 2), (3, 1)))
        matrix = torch.cat([upper, lower])
    return matrix


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of (B, C, H, W) with this standard deviation in pixels; pixels beyond the edge repeat it."""
    offsets = torch.arange(-_REACH, _REACH + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-offsets.square() / (2 * sigma**2), 0)
    flat = F.pad(images.flatten(0, 1)[:, None], (_REACH,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(images.shape)


def build(
    example: Tensor,
    *,
    operator: Operator = "floyd_steinberg",
    mean: Sequence[float],
    std: Sequence[float],
    levels: int = 2,
    serpentine: int = 0,
    factor: int = 1,
    training: Training = "halftone",
) -> Halftone:
    """The layer.

    Args:
        example: (B, C, H, W).
        operator, levels, factor, training: see ``Halftone``.
        serpentine: 1 for a serpentine scan.
        mean, std: the normalisation of the network's input, C numbers each.

    Raises:
        TutelageError: the inputs are not images, or a setting is invalid.
    """
    if example.ndim != 4:
        raise TutelageError(
            f"only images can be halftoned, and the inputs have shape {tuple(example.shape[1:])}; give images (C, H, W)"
        )
    if operator not in get_args(Operator):
        raise unknown("halftoning operator", str(operator), get_args(Operator))
    if training not in get_args(Training):
        raise unknown("training of the halftone", str(training), get_args(Training))
    for name, value, low, high in (("levels", levels, 2, 256), ("factor", factor, 1, 16)):
        if not isinstance(value, int) or not low <= value <= high:
            raise TutelageError(
                f"the halftone's {name} must be an integer from {low} to {high}, got {value_text(value)}"
            )
    channels = example.shape[1]
    for name, numbers in (("mean", mean), ("std", std)):
        are_numbers = isinstance(numbers, list | tuple) and all(isinstance(value, int | float) for value in numbers)
        if not are_numbers or len(numbers) != channels or not all(map(math.isfinite, numbers)):
            raise TutelageError(
                f"the halftone's {name} must be {channels} finite numbers, one per channel, got {value_text(numbers)}"
            )
    if min(std) <= 0:
        raise TutelageError(f"the halftone's std must be positive, got {value_text(std)}")
    return Halftone(
        operator, mean, std, levels=levels, serpentine=bool(serpentine), factor=factor, training=training
    ).to(example.device)
