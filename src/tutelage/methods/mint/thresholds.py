"""Which groups of weights are cut: a threshold for all layers, with an upper limit for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def remaining_groups(
    scores: Sequence[Tensor], sizes: Sequence[Tensor], share: float, cap: float, generator: torch.Generator
) -> list[Tensor]:
    """Cut the groups with the lowest scores.

    The threshold is the largest of the first ``share`` of all distinct scores of all layers in order. Scores below 0
    count as 0. Groups with scores up to the threshold are cut. If a layer would lose more than ``cap`` of its weights,
    only its lowest groups within ``cap`` are cut, the most negative scores first, and random ones of equal scores.

    Args:
        scores: of the groups of each layer.
        sizes: the number of weights of each group, of the same shapes.
        share: p, in [0, 1].
        cap: u, in [0, 1).
        generator: of the choice among equal scores.

    Returns:
        True for the groups that are not cut, of the same shapes.
    """
    distinct = sorted({value for score in scores for value in score.clamp(min=0).flatten().tolist()})
    count = int(share * len(distinct) + 1e-9)
    remaining = []
    for score, size in zip(scores, sizes, strict=True):
        flat, weights = score.flatten(), size.flatten().double()
        shuffled = torch.randperm(len(flat), generator=generator)
        order = shuffled[flat[shuffled].argsort(stable=True)]
        within_cap = weights[order].cumsum(0) <= cap * weights.sum() + 1e-9
        below = flat[order].clamp(min=0) <= distinct[count - 1] if count else torch.zeros_like(within_cap)
        keep = torch.ones(len(flat), dtype=torch.bool)
        keep[order[within_cap & below]] = False
        remaining.append(keep.view(score.shape))
    return remaining


def remaining_at_most(
    scores: Sequence[Tensor], sizes: Sequence[Tensor], weights: float, cap: float, generator: torch.Generator
) -> list[Tensor] | None:
    """Cut the groups with the lowest scores as ``remaining_groups`` does, at the lowest threshold that suffices.

    Args:
        scores, sizes, cap, generator: as there.
        weights: the largest number of weights that may remain.

    Returns:
        As there; ``None`` if more than these weights remain even if each layer loses ``cap`` of its own.
    """
    state = generator.get_state()
    count = len({value for score in scores for value in score.clamp(min=0).flatten().tolist()})

    def remaining(values: int) -> list[Tensor]:
        generator.set_state(state)  # so that equal scores are always cut in the same order
        return remaining_groups(scores, sizes, values / count, cap, generator)

    def suffices(values: int) -> bool:
        pairs = zip(sizes, remaining(values), strict=True)
        return sum(float(size[keep].double().sum()) for size, keep in pairs) <= weights + 1e-9

    if not suffices(count):
        return None
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return remaining(low)
