"""A pool of samples with hidden labels."""

from __future__ import annotations

import pytest
import torch

from tutelage.methods.minority_al.pool import Pool


def test_only_requested_labels_are_visible() -> None:
    pool = Pool(torch.tensor([2, 0, 1, 1, -1]))
    assert pool.candidates.tolist() == [0, 1, 2, 3]  # the last has no label
    assert pool.request(torch.tensor([3, 0])).tolist() == [1, 2]
    assert pool.request(torch.tensor([1])).tolist() == [0]
    assert pool.labels.tolist() == [2, 0, -1, 1, -1]
    assert pool.round.tolist() == [0, 1, -1, 0, -1]
    assert pool.labelled.tolist() == [0, 1, 3]
    assert pool.candidates.tolist() == [2]
    assert pool.counts(4).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("indices", [[0], [4], [1, 1]])
def test_requests_of_other_than_distinct_candidates_are_errors(indices: list[int]) -> None:
    pool = Pool(torch.tensor([2, 0, 1, 1, -1]))
    pool.request(torch.tensor([0]))
    with pytest.raises(ValueError, match="distinct candidates"):
        pool.request(torch.tensor(indices))
