"""Class imbalance: closed forms, selected samples and errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tutelage.data import Data, LongTail, MissingLabels, PowerLawImbalance, Split, StepImbalance, SymmetricNoise
from tutelage.data.conditions import parse_imbalance

LAWS = [PowerLawImbalance(0.6), LongTail(0.1), StepImbalance(0.5, 0.1)]


def tiny(counts: list[int], *, shuffled: bool = False) -> Data:
    """Images of one pixel with the given number per class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    part = Split.of(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    return Data("tiny", tuple(f"c{c}" for c in range(len(counts))), part, part)


CIFAR = [5000] * 10


@pytest.mark.parametrize(
    ("gamma", "counts", "total"),
    [
        (0.2, [5000, 858, 557, 439, 375, 333, 304, 282, 264, 250], 8662),
        (0.6, [5000, 1166, 720, 539, 440, 376, 331, 297, 271, 250], 9390),
        (1.0, [5000, 1607, 957, 682, 529, 433, 366, 317, 280, 250], 10421),
        (2.0, [5000, 3173, 1972, 1289, 892, 648, 490, 382, 306, 250], 14402),
    ],
)
@pytest.mark.parametrize("ends", [(), (5000, 250)], ids=["defaults", "named"])
def test_power_law_gives_the_table_of_the_study(gamma, counts, total, ends):
    rare = PowerLawImbalance(gamma, *ends)(tiny(CIFAR, shuffled=True))
    assert torch.bincount(rare.train.labels).tolist() == counts
    assert rare.record[-1] == {
        "condition": "PowerLawImbalance",
        "gamma": gamma,
        "n_max": 5000,
        "n_min": 250,
        "samples_before": 50_000,
        "samples": total,
        "class_counts": counts,
    }
    text = ":".join(["powerlaw", *map(str, (gamma, *ends))])
    assert parse_imbalance(text)(tiny(CIFAR, shuffled=True)).record == rare.record


@pytest.mark.parametrize("gamma", [0.1, 0.2, 0.4, 0.8, 1.5, 2.0, 3.0, 7.0])
@pytest.mark.parametrize(("classes", "n_max", "n_min"), [(2, 40, 1), (10, 600, 7), (100, 500, 25)])
def test_power_law_follows_the_equation_of_the_paper(gamma, classes, n_max, n_min):
    b = (n_min * classes**gamma - n_max) / (n_max - n_min)
    a = n_max * (1 + b)
    expected = [round(a / (b + c**gamma)) for c in range(1, classes + 1)]
    assert PowerLawImbalance(gamma, n_max, n_min)(tiny([n_max] * classes)).record[-1]["class_counts"] == expected


@pytest.mark.parametrize("gamma", [1e-12, 1e-3, 1.0, 50.0, 1e4])
def test_power_law_has_its_end_counts_and_decreases_between_them(gamma):
    counts = PowerLawImbalance(gamma)(tiny([400] * 20)).record[-1]["class_counts"]
    assert counts[0] == 400
    assert counts[-1] == 20
    assert counts == sorted(counts, reverse=True)


def test_defaults_depend_on_the_smallest_class():
    entry = PowerLawImbalance(1.0)(tiny([90, 30, 50])).record[-1]
    assert (entry["n_max"], entry["n_min"]) == (30, 2)
    assert PowerLawImbalance(1.0)(tiny([4, 4])).record[-1]["class_counts"] == [4, 1]
    assert PowerLawImbalance(1.0, n_min=3)(tiny([9, 9])).record[-1]["class_counts"] == [9, 3]
    assert PowerLawImbalance(1.0, n_max=60)(tiny([90, 30, 50])).record[-1]["class_counts"] == [60, 6, 3]


def test_long_tail_gives_the_class_counts_of_cifar10_lt():
    """12,406 images at an imbalance ratio of 100, as LDAM's code makes them."""
    rare = LongTail(0.01)(tiny(CIFAR))
    assert rare.record[-1]["class_counts"] == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert rare.record[-1]["factor"] == 0.01
    assert len(rare.train) == rare.record[-1]["samples"] == 12_406


@pytest.mark.parametrize("factor", [0.01, 0.1, 0.5, 1.0])
def test_long_tail_follows_its_equation(factor):
    counts = LongTail(factor)(tiny([500] * 100)).record[-1]["class_counts"]
    assert counts == [max(1, math.floor(500 * factor ** (c / 99) + 1e-6)) for c in range(100)]


@pytest.mark.parametrize(
    ("share", "classes", "expected"),
    [(0.5, 10, [500] * 5 + [50] * 5), (0.9, 10, [500] + [50] * 9), (0.3, 5, [500] * 3 + [50] * 2)],
)
def test_step_occurs_at_the_given_share_of_classes(share, classes, expected):
    assert StepImbalance(share, 0.1)(tiny([500] * classes)).record[-1]["class_counts"] == expected


def test_counts_are_not_rounded_down_by_float_error():
    assert StepImbalance(0.5, 0.29)(tiny([100, 100])).record[-1]["class_counts"] == [100, 29]  # 100 x 0.29 is 28.999..


def test_every_class_keeps_at_least_one_sample():
    assert LongTail(0.01)(tiny([10] * 3)).record[-1]["class_counts"] == [10, 1, 1]
    assert StepImbalance(0.5, 0.01)(tiny([10] * 2)).record[-1]["class_counts"] == [10, 1]


@pytest.mark.parametrize("profile", LAWS)
def test_first_samples_of_each_class_are_kept_in_order(profile):
    data = tiny([80] * 6, shuffled=True)
    rare = profile(data)
    counts, expected = [0] * 6, []
    for index, label in enumerate(data.train.labels.tolist()):
        if counts[label] < rare.record[-1]["class_counts"][label]:
            expected.append(index)
        counts[label] += 1
    assert rare.train.index.tolist() == expected
    assert rare.record[-1]["samples_before"] == 480
    assert torch.equal(profile(data).train.index, rare.train.index)
    assert torch.equal(rare.test.labels, data.test.labels)


@pytest.mark.parametrize("profile", LAWS)
def test_imbalance_commutes_with_noise(profile):
    data = tiny([80] * 6, shuffled=True)
    first = profile(SymmetricNoise(0.8)(data))
    assert torch.equal(first.train.index, profile(data).train.index)
    assert torch.bincount(first.train.clean_labels).tolist() == first.record[-1]["class_counts"]
    assert torch.bincount(first.train.labels).tolist() != first.record[-1]["class_counts"]


def test_unlabelled_samples_are_omitted_and_soft_labels_count_by_argmax():
    data = tiny([80] * 6, shuffled=True)
    rare = LongTail(0.1)(MissingLabels(0.5)(data))
    assert (rare.train.labels >= 0).all()
    soft = torch.nn.functional.one_hot(data.train.labels, 6).float() * 0.4 + 0.1
    soft_data = replace(data, train=replace(data.train, labels=soft))
    assert torch.equal(LongTail(0.1)(soft_data).train.index, LongTail(0.1)(data).train.index)


# --- errors


@pytest.mark.parametrize(
    ("make", "pieces"),
    [
        *[(lambda g=g: PowerLawImbalance(g), (repr(g), "above 0")) for g in (0, -1.0, math.nan, math.inf, "0.2")],
        (lambda: PowerLawImbalance(1.0, 100, 0), ("got 0", "1 sample or more")),
        (lambda: PowerLawImbalance(1.0, 100, 100), ("n_max 100 and n_min 100", "Subset")),
        (lambda: PowerLawImbalance(1.0, 1), ("n_max 1 and n_min 1", "Subset")),
        *[(lambda f=f: LongTail(f), (repr(f), "above 0 and at most 1")) for f in (0, 1.5, -0.1, math.nan, "0.1", None)],
        (lambda: StepImbalance(0.5, 0), ("got 0", "above 0 and at most 1")),
        *[(lambda s=s: StepImbalance(s, 0.1), (repr(s), "between 0 and 1")) for s in (0, 1, -0.5, math.nan, "half")],
    ],
)
def test_invalid_parameters_are_refused(refused, make, pieces):
    with refused(*pieces):
        make()


@pytest.mark.parametrize("profile", LAWS)
def test_imbalance_requires_two_classes_with_samples(refused, profile):
    with refused(type(profile).__name__, "2 classes", "has 1"):
        profile(tiny([10]))
    with refused("0"):
        profile(tiny([10, 0, 10]))


def test_class_that_is_too_small_is_refused(refused):
    with refused("'c1'", "30 training samples", "PowerLawImbalance needs"):
        PowerLawImbalance(10.0, 100)(tiny([100, 30, 100]))
    with refused("smallest class has 1", "n_max 1", "n_min 1"):
        PowerLawImbalance(1.0)(tiny([1, 1]))


def test_share_of_no_class_or_of_all_classes_is_refused(refused):
    with refused("0.01 of 10 classes makes 0 of them rare", "0.1 to 0.9"):
        StepImbalance(0.01, 0.1)(tiny([10] * 10))
    with refused("0.99 of 10 classes makes 10 of them rare", "0.1 to 0.9"):
        StepImbalance(0.99, 0.1)(tiny([10] * 10))
