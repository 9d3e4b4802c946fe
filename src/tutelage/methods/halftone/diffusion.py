"""Error diffusion: each pixel is rounded, and its rounding error is added to pixels that come later in the scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = tuple[tuple[int, int, float], ...]
"""(rows down, columns to the right, share of the error); sorted so that a pixel gets its shares in scan order."""


def _kernel(divisor: int, *rows: tuple[int, ...]) -> Kernel:
    """A kernel from its rows of numerators: the first row begins right of the pixel, the others are centred on it."""
    shares = [(0, column, share) for column, share in enumerate(rows[0], 1)]
    for down, row in enumerate(rows[1:], 1):
        shares += [(down, column - len(row) // 2, share) for column, share in enumerate(row)]
    return tuple((down, right, share / divisor) for down, right, share in sorted(shares, key=lambda s: (-s[0], -s[1])))


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "floyd_steinberg": _kernel(16, (7,), (3, 5, 1)),
        "jarvis": _kernel(48, (7, 5), (3, 5, 7, 5, 3), (1, 3, 5, 3, 1)),
    }
)

Threshold = Callable[[Tensor], Tensor]


def nearest_level(values: Tensor, levels: int = 2) -> Tensor:
    """The nearest of the values 0, 1 / (levels - 1), .., 1; the upper one of two equally near ones."""
    if levels == 2:
        return (values >= 0.5).to(values.dtype)
    above = [(values >= (step - 0.5) / (levels - 1)).to(values.dtype) for step in range(1, levels)]
    return torch.stack(above).sum(0) / (levels - 1)


def soft_level(values: Tensor, levels: int = 2, slope: float = 8.0) -> Tensor:
    """``nearest_level`` with sigmoids of this slope, relative to the distance of levels, in place of its steps.

    With the error e = v - o, |de/dv| = |1 - slope sigmoid'| <= 1 for two levels and slopes up to 8, so that gradients
    of diffused errors do not explode.
    """
    above = [(slope * ((levels - 1) * values - step + 0.5)).sigmoid() for step in range(1, levels)]
    return torch.stack(above).sum(0) / (levels - 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def diffused(
    images: Tensor, kernel: Kernel, threshold: Threshold, *, serpentine: bool = False
) -> tuple[Tensor, Tensor]:
    """Diffuse the errors of rounding, each channel by itself.

    For each pixel in scan order: o = threshold(v), e = v - o, and v of each later neighbour grows by its share of e.
    Shares of neighbours outside of the image are lost.

    A raster scan runs in parallel along diagonals: pixel (i, j) depends on pixels with a smaller j + s i, where s - 1
    is how far the kernel reaches to the left, so that W + s (H - 1) steps suffice. The result equals that of the
    sequential scan bit for bit. A serpentine scan runs row by row and pixel by pixel.

    Args:
        images: (B, C, H, W), float.
        kernel: the shares.
        threshold: a function of each value; it may be differentiable.
        serpentine: whether odd rows run from right to left, with a mirrored kernel.

    Returns:
        The rounded image o and the errors e, (B, C, H, W) each.
    """
    run = _serpentine if serpentine else _raster
    outputs, errors = run(images.flatten(0, 1), kernel, threshold)
    return outputs.view(images.shape), errors.view(images.shape)


def _raster(images: Tensor, kernel: Kernel, threshold: Threshold) -> tuple[Tensor, Tensor]:
    """Raster scan of (N, H, W) along diagonals; step t holds the pixels (i, t - s i) of some adjacent rows i."""
    count, height, width = images.shape
    skew = 1 - min(right for _, right, _ in kernel)
    deepest = max(down for down, _, _ in kernel)
    rows = torch.arange(height, device=images.device)
    step_of = (torch.arange(width, device=images.device) + skew * rows[:, None]).flatten()
    order = step_of.argsort(stable=True)  # from the top row of a step to the bottom one
    tops = [max(0, -((width - 1 - step) // skew)) for step in range(width + skew * (height - 1))]
    bottoms = [min(height, step // skew + 1) for step in range(len(tops))]
    sizes = [bottom - top for top, bottom in zip(tops, bottoms, strict=True)]
    delays = [right + skew * down for down, right, _ in kernel]
    shares = images.new_tensor([share for _, _, share in kernel])[:, None, None]
    blank = images.new_zeros(len(kernel), count, height + deepest)
    shared = [blank.unbind()] * max(delays)  # before the first step
    outputs, errors = [], []
    for top, bottom, pixels in zip(tops, bottoms, torch.split(images.flatten(1)[:, order], sizes, 1), strict=True):
        values = pixels
        for number, ((down, _, _), delay) in enumerate(zip(kernel, delays, strict=True)):
            values = values + shared[-delay][number][:, deepest - down + top : deepest - down + bottom]
        outputs.append(threshold(values))
        errors.append(values - outputs[-1])
        padded = F.pad(errors[-1], (deepest + top, height - bottom))  # row r is at r + deepest
        shared.append((shares * padded).unbind())
    place = order.argsort()
    return torch.cat(outputs, 1)[:, place].view_as(images), torch.cat(errors, 1)[:, place].view_as(images)


def _serpentine(images: Tensor, kernel: Kernel, threshold: Threshold) -> tuple[Tensor, Tensor]:
    """Serpentine scan of (N, H, W): each row is read in the order of its scan, the errors of earlier rows likewise."""
    height, width = images.shape[1:]
    margin = max(abs(right) for _, right, _ in kernel)
    outputs: list[Tensor] = []
    errors: list[Tensor] = []  # (N, margin + W + margin), from left to right
    for row in range(height):
        backwards = bool(row % 2)
        values = images[:, row]
        for down, right, share in kernel:
            if not 0 < down <= row:
                continue
            mirrored = -right if (row - down) % 2 else right
            values = values + share * errors[row - down][:, margin - mirrored : margin - mirrored + width]
        columns = (values.flip(1) if backwards else values).unbind(1)
        scanned: list[Tensor] = []
        rounded: list[Tensor] = []
        ahead = [(right, share) for down, right, share in kernel if down == 0]
        for column, before in enumerate(columns):
            value = before
            for right, share in ahead:
                if right <= column:
                    value = value + share * scanned[column - right]
            rounded.append(threshold(value))
            scanned.append(value - rounded[-1])
        output, error = torch.stack(rounded, 1), torch.stack(scanned, 1)
        if backwards:
            output, error = output.flip(1), error.flip(1)
        outputs.append(output)
        errors.append(F.pad(error, (margin, margin)))
    return torch.stack(outputs, 1), torch.stack(errors, 1)[:, :, margin : margin + width]
