"""Held-out validation splits: stratified by class; every class keeps a training sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from tutelage.config import Config
from tutelage.data import Data, Split, SymmetricNoise, open_data
from tutelage.data.configured import load_data
from tutelage.data.targets import class_counts
from tutelage.tasks.classification import task as classification


def of_sizes(*sizes: int, unlabelled: int = 0) -> Data:
    labels = torch.cat(
        [torch.full((size,), label) for label, size in enumerate(sizes)] + [torch.full((unlabelled,), -1)]
    )
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    part = Split.of(torch.zeros(len(labels), 8, 8, 1, dtype=torch.uint8), labels)
    return Data("sizes", tuple(f"c{label}" for label in range(len(sizes))), part, part)


def counts(data: Data) -> list[list[int]]:
    return [class_counts(part.labels, data.num_classes) for part in (data.train, data.validation)]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("unlabelled", [0, 7])
def test_held_out_split_equals_the_stratified_split_of_scikit_learn(fraction, unlabelled):
    data = of_sizes(20, 30, 12, unlabelled=unlabelled)
    labels = data.train.labels.numpy()
    expected = train_test_split(
        np.arange(len(labels)), test_size=round(fraction * len(labels)), random_state=5, stratify=labels
    )
    held_out = data.hold_out(fraction, seed=5)
    for part, indices in zip((held_out.train, held_out.validation), expected, strict=True):
        assert part.index.tolist() == sorted(indices)


@pytest.mark.parametrize("seed", range(20))
def test_class_with_one_sample_stays_in_training_and_others_are_split(seed):
    train, validation = counts(of_sizes(50, 1, 30, 20, 1).hold_out(0.1, seed))
    assert [train[1], train[4]] == [1, 1]
    assert [validation[1], validation[4]] == [0, 0]
    assert abs(validation[0] - 5) <= 1
    assert abs(validation[2] - 3) <= 1
    assert abs(validation[3] - 2) <= 1
    assert sum(validation) == 10


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [(2,) * 12, (40, 2, 2), (1, 1, 9), (3, 3, 3), (100, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_keeps_a_training_sample(sizes, fraction, seed):
    data = of_sizes(*sizes)
    held_out = data.hold_out(fraction, seed)
    assert min(class_counts(held_out.train.labels, len(sizes))) >= 1
    together = torch.cat([part.index for name, part in held_out.splits.items() if name != "test"])
    assert sorted(together.tolist()) == list(range(sum(sizes)))


def test_nothing_is_held_out_if_every_class_has_one_sample():
    data = of_sizes(1, 1, 1)
    assert data.hold_out(0.4) is data


def test_record_contains_the_number_of_held_out_samples():
    assert of_sizes(1, 1, 3).hold_out(0.8).record == ({"hold_out": 0.8, "seed": 0, "samples": 2},)


@pytest.mark.parametrize("seed", [0, 18, 19, 27])
def test_long_tailed_data_can_be_split_with_every_seed(seed):
    data = load_data(Config(imbalance="longtail:0.005", seed=seed))
    classification.check_labels(data)
    assert data.validation is not None


def test_unlabelled_samples_do_not_affect_the_split_of_labelled_ones():
    train, validation = counts(of_sizes(30, 1, 20, unlabelled=1).hold_out(0.2))
    assert train[1] == 1
    assert min(validation[0], validation[2]) >= 3


def test_soft_labels_are_stratified_by_their_argmax():
    data = of_sizes(30, 1, 20)
    soft = torch.eye(3)[data.train.labels]
    held_out = replace(data, train=replace(data.train, labels=soft)).hold_out(0.2)
    assert held_out.train.labels.argmax(1).bincount().tolist()[1] == 1


def test_summary_contains_the_noise_rate_of_the_training_split():
    noisy_data = SymmetricNoise(0.4)(open_data("digits"))
    data = noisy_data.hold_out(0.3)
    rates = data.summary()["noise_rate"]
    train = data.train
    assert rates["train"] == pytest.approx((train.labels != train.clean_labels).double().mean().item())
    assert rates["train"] != noisy_data.record[0]["realised_rate"]
    overall_rate = (len(train) * rates["train"] + len(data.validation) * rates["validation"]) / len(noisy_data.train)
    assert overall_rate == pytest.approx(noisy_data.record[0]["realised_rate"])
    assert rates["test"] == 0
