"""Synthetic barcodes: EAN-13 strings, rendered and distorted in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.formats.ean13 import modules, with_check_digit
from tutelage.data.modality import Pixels
from tutelage.data.targets import Strings
from tutelage.data.views.draws import hash_numbers
from tutelage.data.views.many_views import ManyViews
from tutelage.errors import TutelageError

HEIGHT, WIDTH = 24, 192  # pixels: 1.7 a module; below about 1.3 the parities become unreadable
QUIET = (11, 7)  # modules of the quiet zones, left and right
SIZES = {"train": 20_000, "validation": 2_000, "test": 4_000}
MOST_SEVERE = 3.0
CHUNK = 100  # images distorted per batch, so that intermediate values fit into the processor's cache


@dataclass(frozen=True, slots=True)
class Barcodes(Strings):
    """EAN-13 strings: (N, 13) int64 digits, ``-1`` if unknown."""

    task: ClassVar[str] = "barcode"
    noun: ClassVar[str] = "digits of barcodes"


def load(severity: float = 1.0) -> Data:
    """Make a data set of grey 24x192 barcodes of random valid strings; every call returns the same data.

    The 20,000 training images are stored clean and augmented by ``Distortions``. The 2,000 held-out and the 4,000 test
    images are stored distorted, each with its own random distortion. The strings do not depend on the severity.
    """
    views = Distortions(severity)
    generator = torch.Generator().manual_seed(13)
    splits: dict[str, Any] = {}
    for split, size in SIZES.items():
        strings = with_check_digit(torch.randint(10, (size, 12), generator=generator))
        images = render(modules(strings))
        if split != "train":  # numbers that no training view has
            numbers = views.count + torch.arange(size)
            chunks = zip(torch.split(images, CHUNK), torch.split(numbers, CHUNK), strict=True)
            images = torch.cat([views(some, number) for some, number in chunks])
        splits[split] = Split.of(images, strings, Pixels(), Barcodes())
    name = "barcodes" if severity == 1 else f"barcodes:{severity:g}"
    return Data(name, tuple("0123456789"), **splits, views=views)


def render(bars: Tensor, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Render clean images: (N, 95) modules to (N, height, width, 1) uint8, bars 0, paper 255, with quiet zones.

    A pixel's value is the mean of the modules under it.
    """
    ink = F.pad(bars, QUIET).double()
    count = ink.shape[1]
    total = F.pad(ink.cumsum(1), (1, 0))  # ink up to each border between modules
    borders = torch.arange(width + 1, dtype=torch.float64, device=bars.device) * (count / width)
    below = borders.long().clamp(max=count - 1)
    upto = total[:, below] + (borders - below) * ink[:, below]
    row = (255 * (1 - upto.diff(dim=1) * (width / count))).round().clamp(0, 255).to(torch.uint8)
    return row[:, None, :, None].expand(-1, height, -1, -1).contiguous()


@dataclass(frozen=True, slots=True)
class Distortions(ManyViews):
    """Numbered distortions of barcode images, like those of a camera.

    View ``v`` of an image is always the same: its random numbers are a hash of ``v`` and of the image's pixels.
    At severity s each of these is sampled uniformly up to the stated size: rotation 2s degrees, shear 0.15s, zoom 5s %,
    shift 3s pixels across and s down, perspective 0.05s, a cylinder whose half-angle is 0.5s, a grey patch of half the
    height and up to 0.6s of the width, Gaussian blur of up to 1.1s pixels, loss of contrast up to 0.6s at any
    brightness, and Gaussian noise of standard deviation 0.06s. The kinds of distortions are those of the paper;
    their sizes are chosen here.

    Attributes:
        severity: s, from 0 to 3.
    """

    severity: float = 1.0

    def __post_init__(self) -> None:
        ManyViews.__post_init__(self)
        if not 0 <= self.severity <= MOST_SEVERE:
            raise TutelageError(
                f"the severity of distortions must be between 0 and {MOST_SEVERE:g}, got {self.severity}"
            )

    def region(self, size: tuple[int, int], view: Tensor, index: Tensor) -> Tensor:
        """Unsupported: distortions bend images, so no box describes them.

        Raises:
            TutelageError: always.
        """
        raise TutelageError("the distortions of barcodes bend images; labels that are places cannot move with them")

    def settings(self) -> dict[str, Any]:
        """The name and the fields."""
        return {"views": "barcode distortions", **self.plain_fields()}

    def __call__(self, stored: Tensor, view: Tensor, index: Tensor | None = None) -> Tensor:
        """Apply view ``view[b]`` to image ``b``: (B, H, W, 1) uint8 and (B,) int64 to (B, H, W, 1) uint8."""
        seed = hash_numbers(_code(stored) + hash_numbers(view))
        draw = _Uniform(seed, self.severity)
        images = stored.permute(0, 3, 1, 2).float() / 255
        images = F.grid_sample(images, _grid(draw, images), padding_mode="border", align_corners=False)
        images = _blurred(_covered(images, draw), draw(0.0, 1.1))
        contrast = 1 - draw(0.0, 0.6).clamp(max=0.95)
        images = contrast * images + (1 - contrast) * draw.share()
        images = images + 0.06 * self.severity * _noise(seed, images)
        distorted = (255 * images).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return torch.where((view == self.identity)[:, None, None, None], stored, distorted)


class _Uniform:
    """A sequence of uniform random numbers (B, 1, 1, 1), which depend on the seed of each sample only."""

    def __init__(self, seed: Tensor, severity: float) -> None:
        self.seed, self.severity, self.count = seed, severity, 0

    def share(self) -> Tensor:
        """Return the next numbers in [0, 1)."""
        self.count += 1
        bits = hash_numbers(self.seed + self.count) & 0xFFFFFF
        return (bits.float() / 2**24)[:, None, None, None]

    def __call__(self, low: float, high: float) -> Tensor:
        """Return the next numbers in [low, high), times the severity."""
        return self.severity * (low + (high - low) * self.share())


def _code(stored: Tensor) -> Tensor:
    """Hash the middle row of each image: (B, H, W, 1) uint8 to (B,) int64."""
    row = stored[:, stored.shape[1] // 2].flatten(1)
    factors = hash_numbers(torch.arange(row.shape[1], device=stored.device)) | 1
    return (row.long() * factors).sum(1)


def _grid(draw: _Uniform, images: Tensor) -> Tensor:
    """The source of each pixel, (B, H, W, 2) for ``grid_sample``: -1 and 1 are the image's borders."""
    height, width = images.shape[2:]
    down, across = ((torch.arange(size, device=images.device) + 0.5) / (size / 2) - 1 for size in (height, width))
    y, x = down[None, :, None, None], across[None, None, :, None]
    bend = draw(0.0, 0.5).clamp(0.01, 1.5)
    x = (x * bend.sin()).asin() / bend
    divisor = (1 + draw(-0.05, 0.05)) * (1 + draw(-0.05, 0.05) * x + draw(-0.05, 0.05) * y)
    angle, skew = math.radians(1) * draw(-2.0, 2.0), draw(-0.15, 0.15)
    flat = height / width
    right = (x * angle.cos() + y * (flat * (angle.sin() + skew))) / divisor + draw(-3.0, 3.0) * (2 / width)
    below = (y * angle.cos() - x * (angle.sin() / flat)) / divisor + draw(-1.0, 1.0) * (2 / height)
    return torch.cat([right, below], 3)


def _covered(images: Tensor, draw: _Uniform) -> Tensor:
    """Cover each image with a grey patch of half its height and a random share of its width."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    top, left = draw.share() * height / 2, draw.share() * width
    inside = (rows >= top) & (rows < top + height / 2) & ((columns >= left) & (columns < left + width * draw(0.0, 0.6)))
    return torch.where(inside, draw.share(), images)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with a Gaussian of its own standard deviation ``sigma``, in pixels; the border is replicated."""
    reach = 4
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    weights = (-0.5 * (offsets / sigma.clamp(min=1e-3)) ** 2).exp()
    weights = weights / weights.sum(3, keepdim=True)  # (B, 1, 1, 9)
    for axis, padding in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        padded, size = F.pad(images, padding, mode="replicate"), images.shape[axis]
        images = torch.zeros_like(images)
        for offset in range(2 * reach + 1):
            images.addcmul_(padded.narrow(axis, offset, size), weights[:, :, :, offset : offset + 1])
    return images


def _noise(seed: Tensor, images: Tensor) -> Tensor:
    """Nearly Gaussian noise of mean 0 and variance 1 for each pixel: the sum of four uniform bytes."""
    pixels = torch.arange(images[0].numel(), device=images.device, dtype=torch.int32)
    bits = (hash_numbers(seed + 2**32) & 0x7FFFFFFF).to(torch.int32)[:, None] ^ (pixels * 0x27D4EB2D)
    for factor in (0x2C1B3C6D, 0x297A2D39):  # a 32-bit hash; a 64-bit hash costs four times as much
        bits = (bits ^ (bits >> 15 & 0x1FFFF)) * factor
    bits = bits ^ (bits >> 15 & 0x1FFFF)
    total = (bits & 0xFF) + (bits >> 8 & 0xFF) + (bits >> 16 & 0xFF) + (bits >> 24 & 0xFF)
    return ((total - 510).float() * (math.sqrt(3) / 256)).view_as(images)
