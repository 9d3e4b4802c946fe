"""Fixations: points where people looked, as densities and as counts of pixels."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import torch
from torch import Tensor

from tutelage.errors import TutelageError, one_line
from tutelage.files import read_file
from tutelage.text import value_text

SHARE_OF_DEGREE = 1 / 30
"""One degree of visual angle as a share of the longer side: a picture that fills 30 degrees, as on a usual monitor."""


def fixation_planes(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """The density and the counts of fixations, the labels of ``Maps`` for one image.

    The density is the sum of a Gaussian around each point, at the centres of the pixels, divided by its maximum.

    Args:
        points: (K, 2), x and y in pixels from the upper left corner; pixel i reaches from i to i + 1. Points outside of
            the image are not counted, but the density is that of all.
        size: (H, W).
        sigma: the standard deviation in pixels, usually one degree of visual angle.

    Returns:
        (2, H, W) float32; NaN if there is no point in the image.
    """
    height, width = size
    x, y = points.double().unbind(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if not bool(inside.any()):
        return torch.full((2, height, width), float("nan"))
    columns, rows = (
        torch.exp(-((torch.arange(extent) + 0.5 - at[:, None]) ** 2) / (2 * sigma**2))
        for extent, at in ((width, x), (height, y))
    )
    density = rows.T @ columns
    places = y[inside].long() * width + x[inside].long()
    counts = torch.bincount(places, minlength=height * width).view(height, width)
    return torch.stack([density / density.max(), counts.double()]).float()


def read_fixations(file: Path) -> Tensor:
    """The points of a CSV file whose first line names the columns ``x`` and ``y``: (K, 2) float64.

    Raises:
        TutelageError: the file has no such columns or no point, or a coordinate is no finite number.
    """
    try:
        lines = list(csv.reader(io.StringIO(read_file(file).decode("utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TutelageError(f"{file} cannot be read: {one_line(error)}; save it as CSV in UTF-8") from error
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if not {"x", "y"} <= set(header):
        first = value_text(",".join(lines[0])) if lines else "nothing"
        raise TutelageError(f"{file} begins with {first}; its first line must name the columns x and y: x,y")
    columns = header.index("x"), header.index("y")
    points = [[_number(line, column, file, number) for column in columns] for number, line in _filled(lines)]
    if not points:
        raise TutelageError(f"{file} has no fixation; remove it if nobody looked at the image")
    return torch.tensor(points, dtype=torch.float64)


def _filled(lines: list[list[str]]) -> list[tuple[int, list[str]]]:
    """The lines after the first that are not empty, with their numbers counted from 1."""
    return [(number, line) for number, line in enumerate(lines[1:], 2) if any(cell.strip() for cell in line)]


def _number(line: list[str], column: int, file: Path, number: int) -> float:
    text = line[column].strip() if column < len(line) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TutelageError(f"{file}, line {number}: {value_text(text)} is no coordinate; give pixels, such as 12.5")
    return value
