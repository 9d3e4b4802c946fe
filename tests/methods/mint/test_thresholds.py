"""Which groups are cut: the common threshold, the upper limit of each layer, and equal scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tutelage.methods.mint.thresholds import remaining_groups


def cut(scores: list[Tensor], share: float, cap: float, sizes: list[Tensor] | None = None) -> list[list[bool]]:
    sizes = [torch.ones_like(score) for score in scores] if sizes is None else sizes
    remaining = remaining_groups(scores, sizes, share, cap, torch.Generator().manual_seed(0))
    return [(~keep).flatten().tolist() for keep in remaining]


FIRST = torch.tensor([[0.1, 0.5], [0.3, 0.9]], dtype=torch.float64)
SECOND = torch.tensor([[0.7, 0.8], [0.2, 0.95]], dtype=torch.float64)


def test_threshold_is_common_to_all_layers() -> None:
    assert cut([FIRST, SECOND], 0.5, 0.99) == [[True, True, True, False], [False, False, True, False]]
    assert cut([FIRST, SECOND], 0.0, 0.99) == [[False] * 4, [False] * 4]


def test_cap_is_a_quantile_of_the_layer() -> None:
    assert cut([FIRST, SECOND], 0.5, 0.5) == [[True, False, True, False], [False, False, True, False]]
    assert cut([FIRST, SECOND], 1.0, 0.5) == [[True, False, True, False], [True, False, True, False]]
    assert cut([FIRST, SECOND], 1.0, 0.0) == [[False] * 4, [False] * 4]


def test_cap_counts_weights() -> None:
    sizes = [torch.tensor([[6.0, 1.0], [1.0, 2.0]])]
    assert cut([FIRST], 1.0, 0.5, sizes) == [[False] * 4]  # the group with the lowest score is 60 % of the layer
    assert cut([FIRST], 1.0, 0.7, sizes) == [[True, False, True, False]]


@pytest.mark.parametrize("cap", [0.1, 0.45, 0.75, 0.8])
def test_no_layer_loses_more_than_the_cap(cap: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = [torch.rand(shape, generator=generator).double() * scale for shape, scale in (((7, 5), 1), ((3, 20), 0.1))]
    scores[0][:, :4] = 0  # equal scores
    sizes = [torch.randint(1, 9, score.shape, generator=generator).double() for score in scores]
    for share in (0.3, 0.6, 1.0):
        remaining = remaining_groups(scores, sizes, share, cap, generator)
        for keep, size in zip(remaining, sizes, strict=True):
            lost = float(size[~keep].sum() / size.sum())
            assert lost <= cap
            assert share < 1 or lost > cap - 9 / float(size.sum())


def test_distinct_scores_are_counted_once_and_negative_ones_are_zero() -> None:
    scores = [torch.tensor([[0.0, 0.0, 0.0, -0.2, -0.1, 0.5]], dtype=torch.float64)]
    assert cut(scores, 0.5, 0.99) == [[True] * 5 + [False]]  # 0 is the first of two distinct scores
    assert cut(scores, 0.5, 2 / 6) == [[False, False, False, True, True, False]]  # the most negative ones first
    assert cut(scores, 0.49, 0.99) == [[False] * 6]


def test_equal_scores_are_cut_at_random_and_reproducibly() -> None:
    scores, sizes = [torch.zeros(4, 10, dtype=torch.float64)], [torch.ones(4, 10)]
    first, again, other = (
        remaining_groups(scores, sizes, 1.0, 0.5, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int((~first).sum()) == 20
