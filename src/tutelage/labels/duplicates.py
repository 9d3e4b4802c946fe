"""Near duplicates with different labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Split
from tutelage.data.modality import Pixels

SIMILAR = 0.995
"""The correlation of two reduced images from which they count as near duplicates."""

_SIDE, _CHUNK = 8, 2048

_DECIMALS = 4
"""Of correlations, so that equal images are equal on every processor; of equal pairs the first rows are chosen."""


def near_duplicates(split: Split) -> list[tuple[int, int]]:
    """Pairs of images that look the same and have different labels, as rows of the split; each row at most once.

    Images are reduced to 8 x 8 pixels and compared by correlation, so that size, brightness and contrast do not matter.
    Images without contrast are not compared.

    Args:
        split: of images; empty for other inputs.
    """
    if not isinstance(split.modality, Pixels):
        return []
    vectors = _vectors(split)
    valid = vectors.square().sum(1) > 0.5
    pairs: list[tuple[float, int, int]] = []
    for start in range(0, len(split), _CHUNK):
        part = vectors[start : start + _CHUNK]
        similarity = (part @ vectors.T).double().round(decimals=_DECIMALS)
        different = split.labels[start : start + _CHUNK, None] != split.labels[None]
        labelled = (split.labels[start : start + _CHUNK, None] >= 0) & (split.labels[None] >= 0)
        later = torch.arange(start, start + len(part))[:, None] < torch.arange(len(split))[None]
        eligible = different & labelled & later & valid[start : start + _CHUNK, None] & valid[None]
        best, partner = similarity.masked_fill(~eligible, -1.0).max(1)
        for offset in (best > SIMILAR).nonzero()[:, 0].tolist():
            pairs.append((-float(best[offset]), start + offset, int(partner[offset])))
    used: set[int] = set()
    chosen = []
    for _, first, second in sorted(pairs):
        if not {first, second} & used:
            used |= {first, second}
            chosen.append((first, second))
    return chosen


def _vectors(split: Split) -> Tensor:
    """(N, 64 C) float32 of length 1, or 0 for an image without contrast."""
    reduced = []
    for start in range(0, len(split), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(split)))
        images = split.inputs[rows].permute(0, 3, 1, 2).float()
        vectors = F.adaptive_avg_pool2d(images, _SIDE).flatten(1)
        vectors -= vectors.mean(1, keepdim=True)
        length = vectors.norm(dim=1, keepdim=True)
        reduced.append(torch.where(length > 1.0, vectors / length.clamp_min(1.0), 0.0))
    return torch.cat(reduced)
