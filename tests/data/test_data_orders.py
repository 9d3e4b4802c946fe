"""Orders of samples: the composition of batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.data.orders import PK, LabelledFirst, class_balanced, shuffled


def draw_batches(order: Any, labels: Tensor, batch_size: int, seed: int = 0) -> Tensor:
    indices: Tensor = order(labels, batch_size, torch.Generator().manual_seed(seed))
    assert indices.dtype == torch.int64
    return indices


def test_shuffled_order_contains_each_sample_once() -> None:
    indices = draw_batches(shuffled, torch.zeros(11, dtype=torch.int64), 4)
    assert indices.shape == (2, 4)
    assert len(indices.unique()) == 8


def test_balanced_batches_contain_equally_many_samples_per_class() -> None:
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] * 7 + [-1] * 5)
    indices = draw_batches(class_balanced, labels, 10)
    assert indices.shape == (4, 9)  # 40 labelled samples, 3 per class in a batch
    for batch in labels[indices]:
        assert torch.bincount(batch).tolist() == [3, 3, 3]
    for label, size in ((0, 30), (1, 3), (2, 7)):  # no sample repeats before its class is exhausted
        counts = torch.bincount(indices.flatten(), minlength=45)[labels == label]
        assert len(counts) == size
        assert counts.max() - counts.min() <= 1
    soft = torch.nn.functional.one_hot(labels.clamp(min=0), 3).float()
    assert draw_batches(class_balanced, soft[:40], 10).shape == (4, 9)
    assert torch.equal(indices, draw_batches(class_balanced, labels, 10))
    assert not torch.equal(indices, draw_batches(class_balanced, labels, 10, seed=1))


def test_batch_smaller_than_the_number_of_classes_is_refused(refused: Any) -> None:
    with refused("a batch of 2", "3 classes", "take larger"):
        draw_batches(class_balanced, torch.arange(3), 2)


def test_labelled_samples_come_first_and_are_cycled() -> None:
    labels = torch.full((40,), -1)
    labels[torch.tensor([3, 11, 17])] = 1
    indices = draw_batches(LabelledFirst(2), labels, 10)
    assert indices.shape == (4, 10)  # 37 unlabelled samples, 8 per batch
    assert (labels[indices[:, :2]] == 1).all()
    assert (labels[indices[:, 2:]] == -1).all()
    assert len(indices[:, 2:].unique()) == 32
    assert torch.bincount(indices[:, :2].flatten()).max() - 2 <= 1


@pytest.mark.parametrize("label", [-1, 2])
def test_order_is_shuffled_if_all_or_no_samples_are_labelled(label: int) -> None:
    labels = torch.full((12,), label)
    assert torch.equal(draw_batches(LabelledFirst(2), labels, 4), draw_batches(shuffled, labels, 4))


@pytest.mark.parametrize("labelled", [0, 4, 9])
def test_batch_too_small_for_labelled_and_unlabelled_samples_is_refused(labelled: int, refused: Any) -> None:
    labels = torch.tensor([0, -1] * 6)
    with refused("a batch of 4", f"{labelled} samples with a label"):
        draw_batches(LabelledFirst(labelled), labels, 4)


def test_pk_batches_contain_k_samples_of_p_classes() -> None:
    labels = torch.cat([torch.arange(130) % 10, torch.full((20,), -1)])
    indices = draw_batches(PK(4), labels, 16)
    assert indices.shape == (8, 16)  # 130 labelled samples, 4 classes with 4 samples per batch
    for batch in indices:
        assert len(batch.unique()) == 16
        groups = labels[batch].view(4, 4)
        assert (groups == groups[:, :1]).all()  # samples of a class are adjacent
        assert len(groups[:, 0].unique()) == 4
        assert -1 not in labels[batch]
    counts = torch.bincount(labels[indices[:, ::4].flatten()], minlength=10)
    assert counts.sum() == 32
    assert counts.min() >= 2  # classes are cycled
    soft = torch.nn.functional.one_hot(labels.clamp(min=0), 10).float()
    assert torch.equal(draw_batches(PK(4), soft[:130], 16), draw_batches(PK(4), labels[:130], 16))
    assert torch.equal(indices, draw_batches(PK(4), labels, 16))
    assert not torch.equal(indices, draw_batches(PK(4), labels, 16, seed=1))
    assert PK(4) == PK(4)


def test_pk_cycles_through_all_samples_of_a_class() -> None:
    labels = torch.arange(60) % 3
    counts = torch.bincount(
        torch.cat([draw_batches(PK(5), labels, 15, seed) for seed in range(10)]).flatten(), minlength=60
    )
    assert counts.tolist() == [10] * 60  # four groups of five samples are the whole class


def test_pk_uses_all_classes_if_the_batch_could_hold_more() -> None:
    indices = draw_batches(PK(4), torch.arange(30) % 3, 64)
    assert indices.shape == (2, 12)


def test_pk_repeats_samples_of_small_classes() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [2])
    indices = draw_batches(PK(4), labels, 12)
    assert indices.shape == (2, 12)
    for batch in indices:
        assert torch.bincount(labels[batch]).tolist() == [4, 4, 4]
        assert len(batch[labels[batch] == 0].unique()) == 4
        assert len(batch[labels[batch] == 1].unique()) == 3


@pytest.mark.parametrize(
    ("per_class", "labels", "batch_size"),
    [(1, torch.arange(8), 8), (0, torch.arange(8), 8), (4, torch.zeros(8).long(), 8), (8, torch.arange(32) % 4, 15)],
)
def test_pk_refuses_batches_without_triplets(per_class: int, labels: Tensor, batch_size: int, refused: Any) -> None:
    with refused(f"a batch of {batch_size}", f"{per_class} samples of each"):
        draw_batches(PK(per_class), labels, batch_size)


def test_each_of_two_processes_gets_positives_and_negatives() -> None:
    labels = torch.arange(64) % 8
    for batch in labels[draw_batches(PK(4), labels, 16)]:
        for rank in range(2):
            assert torch.bincount(batch[rank::2], minlength=8).sort().values.tolist() == [0] * 4 + [2] * 4
