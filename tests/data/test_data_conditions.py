"""Conditions on data: noise, subsets and imbalance."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tutelage.data import (
    AsymmetricNoise,
    Data,
    HumanLabels,
    InstanceNoise,
    LongTail,
    MissingLabels,
    PairFlip,
    PowerLawImbalance,
    Split,
    StepImbalance,
    Subset,
    SymmetricNoise,
    UniformNoise,
)
from tutelage.data.conditions import parse_imbalance, parse_noise

N, C = 6000, 5
SHARES = {SymmetricNoise: 1.0, UniformNoise: (C - 1) / C, PairFlip: 1.0, InstanceNoise: 1.0, MissingLabels: 1.0}
RATED = list(SHARES)  # noises with a rate, and the share of selected labels that change
NOISES = [SymmetricNoise, UniformNoise, PairFlip, InstanceNoise]


@pytest.fixture
def data(make_data) -> Data:
    return make_data(train=N, classes=C)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.4, 0.9])
@pytest.mark.parametrize(("noise", "wrong"), SHARES.items())
def test_realised_rate_follows_the_convention_of_the_noise(data, noise, wrong, rate):
    noisy_data = noise(rate, seed=3)(data)
    expected = rate * wrong
    sigma = math.sqrt(expected * (1 - expected) / N)
    realised = float((noisy_data.train.labels != data.train.labels).double().mean())
    assert abs(realised - expected) < 3 * sigma
    assert noisy_data.record[-1]["realised_rate"] == realised
    wrong_labels = (noisy_data.train.labels != data.train.labels) & (noisy_data.train.labels >= 0)
    assert torch.equal(noisy_data.train.corrupted, wrong_labels)


@pytest.mark.parametrize(("noise", "unchanged_rate"), [(SymmetricNoise, 0.4), (UniformNoise, 0.4 + 0.6 / C)])
def test_transition_rows_are_uniform_off_the_diagonal(data, noise, unchanged_rate):
    counts = np.array(noise(0.6, seed=1)(data).record[-1]["transition_counts"])
    assert counts.sum(1).tolist() == [N // C] * C
    expected = np.where(np.eye(C) == 1, unchanged_rate, (1 - unchanged_rate) / (C - 1))
    sigma = np.sqrt(expected * (1 - expected) / (N // C))
    assert (np.abs(counts / (N // C) - expected) < 4 * sigma).all()


@pytest.mark.parametrize("noise", RATED)
def test_recorded_transitions_and_rate_match_the_labels(data, noise):
    labels = data.train.labels.clone()
    labels[::7] = -1
    noisy_data = noise(0.5)(replace(data, train=replace(data.train, labels=labels)))
    counts, labelled, changed = np.zeros((C, C), int), 0, 0
    for before, after in zip(labels.tolist(), noisy_data.train.labels.tolist(), strict=True):
        labelled += before >= 0
        changed += before != after
        if before >= 0 and after >= 0:
            counts[before, after] += 1
    entry = noisy_data.record[-1]
    assert entry["transition_counts"] == counts.tolist()
    assert (entry["labelled"], entry["changed"]) == (labelled, changed)
    assert entry["realised_rate"] == changed / labelled


@pytest.mark.parametrize("noise", [SymmetricNoise, PairFlip, InstanceNoise])
def test_rate_one_changes_all_labels_and_rate_zero_none(data, noise):
    assert noise(1.0)(data).train.corrupted.all()
    assert not noise(0.0)(data).train.corrupted.any()


@pytest.mark.parametrize("noise", RATED)
def test_equal_seeds_corrupt_the_same_samples(data, noise):
    noisy_data = noise(0.3, seed=5)(data)
    assert torch.equal(noisy_data.train.labels, noise(0.3, seed=5)(data).train.labels)
    assert not torch.equal(noisy_data.train.labels, noise(0.3, seed=6)(data).train.labels)
    larger_noise = noise(0.5, seed=5)(data)
    hit = noisy_data.train.labels != data.train.labels
    assert torch.equal(larger_noise.train.labels[hit], noisy_data.train.labels[hit])


CONDITIONS = [
    *[noise(0.5) for noise in RATED],
    AsymmetricNoise(np.full((4, 4), 0.25)),
    Subset(7),
    PowerLawImbalance(0.5),
    LongTail(0.1),
    StepImbalance(0.5, 0.1),
]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: type(condition).__name__)
def test_only_the_training_split_is_changed(make_data, condition):
    data = make_data(train=100, validation=20)
    before = {name: (p.inputs.clone(), p.labels.clone()) for name, p in data.splits.items()}
    changed = condition(data)
    assert not torch.equal(changed.train.labels, before["train"][1])
    for name, (images, labels) in before.items():
        assert torch.equal(data.splits[name].inputs, images)
        assert torch.equal(data.splits[name].labels, labels)
        if name != "train":
            assert torch.equal(changed.splits[name].inputs, images)
            assert torch.equal(changed.splits[name].labels, labels)
    selected = changed.train.index
    assert torch.equal(changed.train.clean_labels, before["train"][1][selected])
    assert torch.equal(changed.train.inputs, before["train"][0][selected])
    assert json.loads(json.dumps(changed.summary()["record"]))[-1]["condition"] == type(condition).__name__
    assert condition == replace(condition)
    assert hash(condition) == hash(replace(condition))


def test_record_is_json_and_describes_the_condition(make_data):
    data = SymmetricNoise(0.5, seed=2)(Subset(20, seed=1)(make_data(train=100, validation=20)))
    subset, noise = json.loads(json.dumps(data.summary()["record"]))
    assert subset == {"condition": "Subset", "per_class": 20, "seed": 1, "samples_before": 100, "samples": 80}
    assert (noise["condition"], noise["rate"], noise["seed"]) == ("SymmetricNoise", 0.5, 2)
    assert (noise["labelled"], noise["validation"]) == (80, "left clean")
    assert noise["changed"] == int(data.train.corrupted.sum())


def test_conditions_with_one_seed_use_independent_random_streams(data):
    symmetric, uniform = (noise(0.3, seed=1)(data).train.corrupted for noise in (SymmetricNoise, UniformNoise))
    combined = float((symmetric & uniform).double().mean())
    assert abs(combined - 0.3 * 0.3 * (C - 1) / C) < 0.02  # with one stream for both it would be 0.24


def test_second_noise_is_counted_against_the_first_and_clean_labels_stay(data):
    once_noisy = SymmetricNoise(0.3, seed=1)(data)
    twice = UniformNoise(0.2, seed=1)(once_noisy)
    changed = int((twice.train.labels != once_noisy.train.labels).sum())
    assert twice.record[-1]["changed"] == changed > 0
    assert torch.equal(twice.train.clean_labels, data.train.labels)
    assert len(twice.record) == 2


@pytest.mark.parametrize("noise", NOISES)
def test_absent_labels_stay_absent(data, noise):
    labels = data.train.labels.clone()
    labels[::3] = -1
    noisy_data = noise(0.9)(replace(data, train=replace(data.train, labels=labels)))
    assert torch.equal(noisy_data.train.labels == -1, labels == -1)
    entry = noisy_data.record[-1]
    assert entry["labelled"] == 4000 == np.sum(entry["transition_counts"])
    assert entry["realised_rate"] == entry["changed"] / 4000


@pytest.mark.parametrize("noise", NOISES)
def test_noise_needs_hard_labels_and_two_classes(make_data, refused, noise):
    data = make_data()
    soft = replace(data, train=replace(data.train, labels=torch.full((60, 4), 0.25)))
    with refused(noise.__name__, "hard labels", "(60, 4)", "arg-max"):
        noise(0.1)(soft)
    with refused(noise.__name__, "2 classes", "has 1"):
        noise(0.1)(make_data(classes=1))


@pytest.mark.parametrize("noise", RATED)
@pytest.mark.parametrize("rate", [float("nan"), -0.1, 1.01, float("inf"), "0.4", None])
def test_invalid_rates_are_refused(refused, noise, rate):
    with refused(repr(rate), "from 0 to 1"):
        noise(rate)


@pytest.mark.parametrize("per_class", [1, 3, 9])
def test_subset_has_the_requested_count_per_class_in_original_order(data, per_class):
    small = Subset(per_class, seed=4)(data)
    assert torch.bincount(small.train.labels).tolist() == [per_class] * C
    index = small.train.index
    assert index.tolist() == sorted(set(index.tolist()))
    assert torch.equal(small.train.inputs, data.train.inputs[index])
    assert torch.equal(index, Subset(per_class, seed=4)(data).train.index)
    assert not torch.equal(index, Subset(per_class, seed=5)(data).train.index)
    larger = Subset(per_class + 5, seed=4)(data)
    assert set(index.tolist()) < set(larger.train.index.tolist())


def test_subset_is_sampled_from_the_whole_split():
    labels = torch.arange(4000) % 2
    part = Split.of(torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), labels)
    index = Subset(500)(Data("made", ("a", "b"), part, part)).train.index.double()
    assert abs(float(index.mean()) - 2000) < 3 * 4000 / math.sqrt(12 * 1000)


def test_subset_omits_unlabelled_samples_and_uses_argmax_of_soft_labels(make_data):
    data = make_data()
    labels = data.train.labels.clone()
    labels[:20] = -1
    small = Subset(5)(replace(data, train=replace(data.train, labels=labels)))
    assert torch.bincount(small.train.labels).tolist() == [5] * 4
    assert small.train.index.min() >= 20
    soft = torch.nn.functional.one_hot(data.train.labels, 4).float() * 0.6 + 0.1
    small = Subset(5)(replace(data, train=replace(data.train, labels=soft)))
    assert torch.bincount(small.train.labels.argmax(1)).tolist() == [5] * 4


def test_subset_commutes_with_noise(data):
    first, last = SymmetricNoise(0.6)(Subset(50)(data)), Subset(50)(SymmetricNoise(0.6)(data))
    assert torch.equal(first.train.index, last.train.index)
    assert torch.bincount(last.train.clean_labels).tolist() == [50] * C


@pytest.mark.parametrize("per_class", [0, -3])
def test_empty_subset_is_refused(refused, per_class):
    with refused(per_class, "1 sample of each class"):
        Subset(per_class)


def test_subset_larger_than_a_class_is_refused(make_data, refused):
    with refused("'c3'", "14 training samples", "15 requested", "request fewer"):
        Subset(15)(make_data(train=59))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.4", [SymmetricNoise(0.4, 9)]),
        (0.4, [SymmetricNoise(0.4, 9)]),
        (1, [SymmetricNoise(1.0, 9)]),
        ("symmetric:0.4", [SymmetricNoise(0.4, 9)]),
        ("uniform:0.25", [UniformNoise(0.25, 9)]),
        ("pair:0.4", [PairFlip(0.4, 9)]),
        ("instance:0.4", [InstanceNoise(0.4, 9)]),
        ("missing:0.3", [MissingLabels(0.3, 9)]),
        ("human:some/labels.npz:worst", [HumanLabels("some/labels.npz", "worst")]),
        ("human:C:\\labels.csv:worst", [HumanLabels("C:\\labels.csv", "worst")]),
        ("0", []),
        (0, []),
        (0.0, []),
        ("uniform:0", []),
        ("missing:0", []),
        ("0.4+missing:0.5", [SymmetricNoise(0.4, 9), MissingLabels(0.5, 9)]),
        ("missing:0.5 + 0.4", [MissingLabels(0.5, 9), SymmetricNoise(0.4, 9)]),
        ("pair:0.1+.2+missing:0.3", [PairFlip(0.1, 9), SymmetricNoise(0.2, 9), MissingLabels(0.3, 9)]),
        ("0+missing:0.5", [MissingLabels(0.5, 9)]),
        ("0+uniform:0", []),
        ("+0.4", [SymmetricNoise(0.4, 9)]),
        ("human:c++/a+b.npz:worst+missing:0.5", [HumanLabels("c++/a+b.npz", "worst"), MissingLabels(0.5, 9)]),
    ],
)
def test_noise_is_parsed(text, expected):
    assert parse_noise(text, seed=9) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        *[
            (text, (repr(text), "from 0 to 1", "symmetric:0.4"))
            for text in ["nan", "-0.1", "1.5", "many", "", "uniform:", "40%", "pair:1.5", "missing", "instance:0.4:2"]
        ],
        ("symetric:0.4", ("'symetric'", "did you mean 'symmetric'")),
        (":0.4", ("unknown noise ''", "symmetric, trusted, uniform")),
        ("matrix:", ("'matrix:'", "matrix:FILE", ".csv, .npy or .json")),
        ("matrix:nowhere.csv", ("nowhere.csv", "No such file")),
        ("human:labels.npz", ("'human:labels.npz'", "human:FILE:COLUMN")),
        ("human:labels.npz:", ("'human:labels.npz:'", "human:FILE:COLUMN")),
        ("0.4+mising:0.5", ("unknown noise 'mising'", "did you mean 'missing'")),
        ("0.4+missing:2", ("'missing:2'", "from 0 to 1")),
        ("0.4+", ("'0.4+'", "from 0 to 1")),
        ("0.4+nonsense", ("'0.4+nonsense'", "from 0 to 1")),
        ("0.4++0.2", ("'0.4+'", "from 0 to 1")),
        ("matrix:a+b.csv+0.2", ("a+b.csv", "No such file")),
        ("0.4+symmetric:0.2", ("'0.4+symmetric:0.2'", "SymmetricNoise 2 times", "once")),
        ("missing:0.4+human:labels.npz:worst", ("human labels after others", "first")),
    ],
)
def test_invalid_noise_strings_are_refused(refused, text, pieces):
    with refused(*pieces):
        parse_noise(text, seed=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("powerlaw:0.2", PowerLawImbalance(0.2)),
        ("powerlaw:0.2:500:25", PowerLawImbalance(0.2, 500, 25)),
        ("longtail:0.01", LongTail(0.01)),
        ("step:0.5:0.1", StepImbalance(0.5, 0.1)),
        (" step:0.5:1e-1 ", StepImbalance(0.5, 0.1)),
    ],
)
def test_imbalance_is_parsed(text, expected):
    assert parse_imbalance(text) == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("longtial:0.1", ("'longtial'", "did you mean 'longtail'", "powerlaw:0.2")),
        ("0.1", ("unknown imbalance '0.1'", "longtail:0.01")),
        ("powerlaw", ("'powerlaw'", "write powerlaw:0.2")),
        ("powerlaw:steep", ("'powerlaw:steep'", "write powerlaw:0.2")),
        ("step:0.5", ("'step:0.5'", "write step:0.5:0.1")),
        ("longtail:0.1:3", ("'longtail:0.1:3'", "write longtail:0.01")),
        ("longtail:2", ("2.0", "at most 1")),
        ("step:1:0.1", ("1.0", "between 0 and 1")),
        ("powerlaw:0", ("0.0", "above 0")),
        ("powerlaw:0.2:500", ("'powerlaw:0.2:500'", "write powerlaw:0.2 or powerlaw:0.2:500:25")),
        ("powerlaw:0.2:500:25:1", ("'powerlaw:0.2:500:25:1'", "powerlaw:0.2:500:25")),
        ("powerlaw:0.2:500:few", ("'powerlaw:0.2:500:few'", "powerlaw:0.2:500:25")),
        ("powerlaw:0.2:500.5:25", ("whole numbers", "500.5 and 25")),
        ("powerlaw:0.2:inf:25", ("whole numbers", "inf and 25")),
        ("powerlaw:0.2:500:nan", ("whole numbers", "500 and nan")),
        ("powerlaw:0.2:25:500", ("n_max 25", "n_min 500")),
        ("powerlaw:0.2:500:0", ("n_min", "got 0")),
    ],
)
def test_invalid_imbalance_strings_are_refused(refused, text, pieces):
    with refused(*pieces):
        parse_imbalance(text)
