"""Batches, statistics and held-out splits."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
import torch

from tutelage.cores import cores
from tutelage.data import Batch, Batches, CropsAndFlips, Data, Split, evaluation_batches
from tutelage.data.loader import mix_seeds, stream
from tutelage.tasks.classification import task as classification


def contents(batches) -> list[tuple[torch.Tensor, ...]]:
    return [(b.inputs, b.targets, b.index, b.key) for b in batches]


def same(a: list[tuple[torch.Tensor, ...]], b: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_batches_are_a_function_of_seed_and_epoch(make_data):
    split, views = make_data().train, CropsAndFlips(1, True)
    first = Batches(split, batch_size=16, views=views, seed=3)
    assert len(list(first.epoch(0))) == 3  # an earlier epoch must not affect later ones
    second = Batches(split, batch_size=16, views=views, seed=3)
    other = Batches(split, batch_size=16, views=views, seed=4)
    assert same(contents(first.epoch(5)), contents(second.epoch(5)))
    assert not same(contents(first.epoch(5)), contents(first.epoch(6)))
    assert not same(contents(first.epoch(5)), contents(other.epoch(5)))


def test_epoch_contains_distinct_samples_in_their_views(make_data):
    data, views = make_data(train=70), CropsAndFlips(1, True)
    batches = Batches(data.train, batch_size=16, views=views)
    samples = list(batches.epoch(2))
    assert len(samples) == len(batches) == 4
    index = torch.cat([batch.index for batch in samples])
    assert len(index.unique()) == len(index) == 64
    view = torch.cat([batch.key[:, 1] for batch in samples])
    assert set(view.tolist()) <= set(range(18))
    assert len(view.unique()) > 9
    for step, batch in enumerate(samples):
        assert torch.equal(batch.index, batches.indices(2, step))
        assert torch.equal(batch.key[:, 0], batch.index)
        assert torch.equal(batch.targets, data.train.labels[batch.index])
        expected = views(data.train.inputs[batch.index], batch.key[:, 1]).permute(0, 3, 1, 2).float() / 255
        assert batch.inputs.dtype == torch.float32
        torch.testing.assert_close(batch.inputs, expected)


def test_epoch_contains_every_sample_if_batches_divide_the_split(make_data):
    samples = torch.cat([batch.index for batch in Batches(make_data(train=64).train, batch_size=16).epoch(0)])
    assert samples.sort().values.tolist() == list(range(64))


def test_shards_of_two_processes_form_the_whole_batch(make_data):
    split = make_data().train
    options = {"batch_size": 12, "views": CropsAndFlips(1), "seed": 7}
    full_batches = contents(Batches(split, **options).epoch(1))
    shares = [contents(Batches(split, rank=rank, world=2, **options).epoch(1)) for rank in (0, 1)]
    for step, batch in enumerate(full_batches):
        for full_part, even, odd in zip(batch, shares[0][step], shares[1][step], strict=True):
            assert torch.equal(full_part[0::2], even)
            assert torch.equal(full_part[1::2], odd)


def test_split_smaller_than_a_batch_is_one_batch(make_data):
    batches = Batches(make_data(train=7).train, batch_size=128, world=2)
    assert [len(batch) for batch in batches.epoch(0)] == [3]


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"batch_size": 0}, ("got 0",)),
        ({"batch_size": 9, "world": 2}, ("got 9", "multiple of the 2")),
        ({"batch_size": 128, "world": 64}, ("60 training samples", "64")),
    ],
)
def test_invalid_batch_sizes_are_refused(make_data, refused, options, pieces):
    with refused(*pieces):
        Batches(make_data().train, **options)


@pytest.mark.parametrize("batch_size", [7, 20, 512])
def test_in_order_contains_every_sample_once_without_augmentation(make_data, batch_size):
    test = make_data().test
    batches = list(evaluation_batches(test, batch_size=batch_size))
    assert all(isinstance(batch, Batch) and len(batch) <= batch_size for batch in batches)
    assert torch.cat([b.index for b in batches]).tolist() == list(range(20))
    assert torch.equal(torch.cat([b.targets for b in batches]), test.labels)
    torch.testing.assert_close(torch.cat([b.inputs for b in batches]), test.inputs.permute(0, 3, 1, 2) / 255)


def test_mixed_seeds_do_not_collide():
    assert len({mix_seeds(seed, epoch) for seed in range(40) for epoch in range(40)}) == 1600
    assert mix_seeds(1, 2) != mix_seeds(2, 1)


def test_mean_and_std_are_those_of_the_training_split(make_data):
    data = make_data()
    mean, std = data.mean_std
    pixels = data.train.inputs.numpy() / 255
    np.testing.assert_allclose(mean, [pixels.mean()], rtol=1e-9)
    np.testing.assert_allclose(std, [pixels.std()], rtol=1e-9)
    assert abs(mean[0] - np.concatenate([pixels, data.test.inputs.numpy() / 255]).mean()) > 1e-5


def test_constant_channel_has_std_one():
    images = torch.full((4, 2, 2, 3), 51, dtype=torch.uint8)
    part = Split.of(images, torch.arange(4) % 2)
    mean, std = Data("flat", ("a", "b"), part, part).mean_std
    np.testing.assert_allclose(mean, [0.2] * 3)
    assert std == (1.0, 1.0, 1.0)


def test_held_out_split_is_stratified_and_keeps_its_indices(make_data):
    data = make_data(train=200)
    held_out = data.hold_out(0.1, seed=3)
    assert torch.bincount(held_out.validation.labels).tolist() == [5, 5, 5, 5]
    indices = torch.cat([held_out.train.index, held_out.validation.index])
    assert indices.sort().values.tolist() == list(range(200))
    for part in (held_out.train, held_out.validation):
        assert torch.equal(part.labels, data.train.labels[part.index])
        assert torch.equal(part.inputs, data.train.inputs[part.index])
    assert torch.equal(held_out.validation.index, data.hold_out(0.1, seed=3).validation.index)
    assert not torch.equal(held_out.validation.index, data.hold_out(0.1, seed=4).validation.index)
    assert held_out.record == ({"hold_out": 0.1, "seed": 3, "samples": 20},)


def test_existing_validation_split_is_kept(make_data):
    data = make_data(validation=8)
    assert data.hold_out(0.5) is data


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_invalid_validation_fractions_are_refused(make_data, refused, fraction):
    with refused(fraction, "[0, 1)"):
        make_data().hold_out(fraction)


def test_holding_out_everything_is_refused(make_data, refused):
    with refused(0.99, "20 samples", "hold out less"):
        make_data(train=20).hold_out(0.99)


def test_class_without_a_training_sample_is_named(make_data, refused):
    data = make_data(train=3, classes=4)
    with refused("1 of the 4 classes", "'c3'"):
        classification.check_labels(data)


def test_soft_labels_have_clean_labels_and_no_corruption():
    soft = torch.tensor([[0.1, 0.9], [0.7, 0.3], [0.5, 0.5]])
    part = Split.of(torch.zeros(3, 2, 2, 1, dtype=torch.uint8), soft)
    assert part.clean_labels.tolist() == [1, 0, -1]  # several largest: no class
    assert part.corrupted.tolist() == [False] * 3


class Files:
    """Images that are read on access, without files."""

    shape = (12, 8, 8, 1)

    def __getitem__(self, index):
        return index.to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 1)

    def fingerprint(self, index):
        return None


def sums(_: int) -> list[float]:
    """Sums of the batches that a pool worker reads with ``workers=2`` requested."""
    split = Split.of(Files(), torch.arange(12) % 3)
    order = Batches(split, batch_size=4, workers=2).epoch(0)
    return sorted(
        (batch.inputs.sum() * 255 / 64).item() for batch in [*order, *evaluation_batches(split, batch_size=5)]
    )


def test_pool_worker_reads_without_loader_workers():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(sums, [0]) == [sums(0)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
def test_no_more_workers_are_started_than_there_are_usable_cores(make_data, monkeypatch):
    """In a container or under ``taskset``, where torch would warn of more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cores() == 1
    started = []

    def loader(*args, num_workers, **options):
        started.append(num_workers)
        return torch.utils.data.DataLoader(*args, num_workers=0, **options | {"prefetch_factor": None})

    monkeypatch.setattr("tutelage.data.loader.DataLoader", loader)
    rows = list(stream(make_data().train.inputs, torch.arange(4).view(2, 2), torch.device("cpu"), 8))
    assert [len(row) for row in rows] == [2, 2]
    assert started == [1]
