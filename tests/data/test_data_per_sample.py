"""Per-sample state and samples looked up by index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tutelage.data import Data, Trusted
from tutelage.data.conditions import SymmetricNoise, parse_noise
from tutelage.data.loader import Batches
from tutelage.data.per_sample import PerSample


def test_rows_are_found_for_any_sample_indices(tiny_data: Data) -> None:
    indices = torch.randperm(48, generator=torch.Generator().manual_seed(1))[:20]
    split = tiny_data.train.subset(indices)
    split = replace(split, index=split.index * 1000 + 7)
    state = PerSample(split, torch.arange(20.0)[:, None])
    for batch in Batches(split, batch_size=5).epoch(0):
        for index, row in zip(batch.index, state.rows(batch.index), strict=True):
            assert split.index[row] == index
    assert set(state.state_dict()) == {"values"}


def test_duplicate_sample_index_is_refused(tiny_data: Data, refused: Any) -> None:
    split = tiny_data.train.subset(torch.tensor([1, 2, 5, 2]))
    with refused("sample 2", "twice"):
        PerSample(split, torch.zeros(4))
    with pytest.raises(ValueError, match="4 samples"):
        PerSample(split, torch.zeros(3))


def test_trusted_labels_are_clean_and_stay_clean(tiny_data: Data) -> None:
    noise, select_trusted = parse_noise("0.5+trusted:3", seed=2)
    data = select_trusted(noise(tiny_data))
    is_trusted = data.train.trusted
    assert is_trusted is not None
    assert torch.bincount(data.train.clean_labels[is_trusted]).tolist() == [3, 3, 3, 3]
    assert torch.equal(data.train.labels[is_trusted], data.train.clean_labels[is_trusted])
    before = noise(tiny_data).train.labels
    assert torch.equal(data.train.labels[~is_trusted], before[~is_trusted])
    assert data.record[-1]["corrected"] == int((before != data.train.labels).sum()) > 0
    second_noise = SymmetricNoise(0.9, 5)(data)
    assert torch.equal(second_noise.train.labels[is_trusted], data.train.clean_labels[is_trusted])
    assert second_noise.train.subset(torch.arange(7)).trusted is not None
    assert torch.equal(Trusted(100)(tiny_data).train.trusted, torch.ones(48, dtype=torch.bool))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["trusted:", "trusted:0", "trusted:x", "trusted:0.5"])
def test_invalid_counts_are_refused(text: str, refused: Any) -> None:
    with refused(text, "trusted:10"):
        parse_noise(text)


def test_second_stream_is_a_function_of_its_number(tiny_data: Data) -> None:
    first_stream, second_stream = (
        Batches(tiny_data.train, batch_size=16, views=tiny_data.views, seed=3) for _ in range(2)
    )
    epoch_batches = [batch for epoch in (0, 1) for batch in first_stream.epoch(epoch)]
    for number in (5, 0, 3):
        assert torch.equal(second_stream.at(number).inputs, epoch_batches[number].inputs)
        assert torch.equal(second_stream.at(number).index, epoch_batches[number].index)


def test_second_view_has_the_same_samples_and_leaves_the_first_unchanged(tiny_data: Data) -> None:
    single_batches, paired_batches = (
        Batches(tiny_data.train, batch_size=16, views=tiny_data.views, second=s) for s in (False, True)
    )
    first, pair = next(single_batches.epoch(0)), next(paired_batches.epoch(0))
    assert first.second is None
    assert pair.second is not None
    assert torch.equal(first.inputs, pair.inputs)
    is_equal = [bool(torch.equal(a, b)) for a, b in zip(pair.inputs, pair.second, strict=True)]
    assert not all(is_equal)
    pixels = tiny_data.train.inputs[pair.index]  # type: ignore[index]
    for image, second in zip(pixels, pair.second, strict=True):
        views = tiny_data.views(image.expand(9, -1, -1, -1), torch.arange(9)).permute(0, 3, 1, 2) / 255
        assert any(torch.equal(second, view) for view in views)
