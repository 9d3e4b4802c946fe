from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tutelage.data import Data, Split, Subset, SymmetricNoise, UniformNoise
from tutelage.data.conditions import parse_noise

N, C = 6000, 5
NOISES = [SymmetricNoise, UniformNoise]


@pytest.fixture
def data(make_data) -> Data:
    return make_data(train=N, classes=C)


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
@pytest.mark.parametrize(("noise", "wrong"), [(SymmetricNoise, 1.0), (UniformNoise, (C - 1) / C)])
def test_the_realised_rate_is_that_of_its_convention(data, noise, wrong, rate):
    noisy = noise(rate, seed=3)(data)
    expected = rate * wrong
    sigma = math.sqrt(expected * (1 - expected) / N)
    realised = float((noisy.train.labels != data.train.labels).double().mean())
    assert abs(realised - expected) < 3 * sigma
    assert noisy.record[-1]["realised_rate"] == realised
    assert torch.equal(noisy.train.corrupted, noisy.train.labels != data.train.labels)


@pytest.mark.parametrize(("noise", "kept"), [(SymmetricNoise, 0.4), (UniformNoise, 0.4 + 0.6 / C)])
def test_every_row_of_transitions_is_flat_off_the_diagonal(data, noise, kept):
    counts = np.array(noise(0.6, seed=1)(data).record[-1]["transition_counts"])
    assert counts.sum(1).tolist() == [N // C] * C
    expected = np.where(np.eye(C) == 1, kept, (1 - kept) / (C - 1))
    sigma = np.sqrt(expected * (1 - expected) / (N // C))
    assert (np.abs(counts / (N // C) - expected) < 4 * sigma).all()


@pytest.mark.parametrize("noise", NOISES)
def test_the_transitions_are_those_of_the_labels(data, noise):
    noisy = noise(0.5)(data)
    counts = np.zeros((C, C), int)
    for before, after in zip(data.train.labels.tolist(), noisy.train.labels.tolist(), strict=True):
        counts[before, after] += 1
    assert noisy.record[-1]["transition_counts"] == counts.tolist()


def test_all_labels_are_wrong_at_a_rate_of_one(data):
    assert SymmetricNoise(1.0)(data).train.corrupted.all()


@pytest.mark.parametrize("noise", NOISES)
def test_the_same_seed_hits_the_same_samples(data, noise):
    noisy = noise(0.3, seed=5)(data)
    assert torch.equal(noisy.train.labels, noise(0.3, seed=5)(data).train.labels)
    assert not torch.equal(noisy.train.labels, noise(0.3, seed=6)(data).train.labels)
    more = noise(0.5, seed=5)(data)
    hit = noisy.train.corrupted
    assert torch.equal(more.train.labels[hit], noisy.train.labels[hit])


@pytest.mark.parametrize("condition", [SymmetricNoise(0.5), UniformNoise(0.5), Subset(7)])
def test_nothing_but_the_training_part_is_touched(make_data, condition):
    data = make_data(train=100, validation=20)
    before = {name: (p.images.clone(), p.labels.clone()) for name, p in data.parts.items()}
    changed = condition(data)
    assert not torch.equal(changed.train.labels, before["train"][1])
    for name, (images, labels) in before.items():
        assert torch.equal(data.parts[name].images, images)
        assert torch.equal(data.parts[name].labels, labels)
        if name != "train":
            assert torch.equal(changed.parts[name].images, images)
            assert torch.equal(changed.parts[name].labels, labels)


def test_the_record_is_json_and_says_what_was_done(make_data):
    data = SymmetricNoise(0.5, seed=2)(Subset(20, seed=1)(make_data(train=100, validation=20)))
    subset, noise = json.loads(json.dumps(data.summary()["record"]))
    assert subset == {"condition": "Subset", "per_class": 20, "seed": 1, "samples_before": 100, "samples": 80}
    assert (noise["condition"], noise["rate"], noise["seed"]) == ("SymmetricNoise", 0.5, 2)
    assert (noise["labelled"], noise["validation"]) == (80, "left clean")
    assert noise["changed"] == int(data.train.corrupted.sum())


def test_conditions_of_one_seed_draw_numbers_of_their_own(data):
    symmetric, uniform = (noise(0.3, seed=1)(data).train.corrupted for noise in NOISES)
    both = float((symmetric & uniform).double().mean())
    assert abs(both - 0.3 * 0.3 * (C - 1) / C) < 0.02  # one stream for both would make it 0.24


def test_a_second_noise_is_counted_against_the_first_and_clean_labels_stay(data):
    once = SymmetricNoise(0.3, seed=1)(data)
    twice = UniformNoise(0.2, seed=1)(once)
    changed = int((twice.train.labels != once.train.labels).sum())
    assert twice.record[-1]["changed"] == changed > 0
    assert torch.equal(twice.train.clean_labels, data.train.labels)
    assert len(twice.record) == 2


@pytest.mark.parametrize("noise", NOISES)
def test_absent_labels_stay_absent(data, noise):
    labels = data.train.labels.clone()
    labels[::3] = -1
    noisy = noise(0.9)(replace(data, train=replace(data.train, labels=labels)))
    assert torch.equal(noisy.train.labels == -1, labels == -1)
    entry = noisy.record[-1]
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


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rate", [float("nan"), -0.1, 1.01, float("inf"), "0.4", None])
def test_rates_that_are_none_are_refused(refused, noise, rate):
    with refused(repr(rate), "from 0 to 1"):
        noise(rate)


@pytest.mark.parametrize("per_class", [1, 3, 9])
def test_a_subset_has_so_many_of_each_class_in_their_order(data, per_class):
    small = Subset(per_class, seed=4)(data)
    assert torch.bincount(small.train.labels).tolist() == [per_class] * C
    index = small.train.index
    assert index.tolist() == sorted(set(index.tolist()))
    assert torch.equal(small.train.images, data.train.images[index])
    assert torch.equal(index, Subset(per_class, seed=4)(data).train.index)
    assert not torch.equal(index, Subset(per_class, seed=5)(data).train.index)
    larger = Subset(per_class + 5, seed=4)(data)
    assert set(index.tolist()) < set(larger.train.index.tolist())


def test_a_subset_is_drawn_from_everywhere():
    labels = torch.arange(4000) % 2
    part = Split.of(torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), labels)
    index = Subset(500)(Data("made", ("a", "b"), part, part)).train.index.double()
    assert abs(float(index.mean()) - 2000) < 3 * 4000 / math.sqrt(12 * 1000)


def test_a_subset_leaves_absent_labels_out_and_takes_soft_ones_by_their_largest(make_data):
    data = make_data()
    labels = data.train.labels.clone()
    labels[:20] = -1
    small = Subset(5)(replace(data, train=replace(data.train, labels=labels)))
    assert torch.bincount(small.train.labels).tolist() == [5] * 4
    assert small.train.index.min() >= 20
    soft = torch.nn.functional.one_hot(data.train.labels, 4).float() * 0.6 + 0.1
    small = Subset(5)(replace(data, train=replace(data.train, labels=soft)))
    assert torch.bincount(small.train.labels.argmax(1)).tolist() == [5] * 4


@pytest.mark.parametrize("per_class", [0, -3])
def test_a_subset_of_nothing_is_refused(refused, per_class):
    with refused(per_class, "1 sample of each class"):
        Subset(per_class)


def test_a_subset_larger_than_a_class_is_refused(make_data, refused):
    with refused("'c3'", "14 training samples", "15 wanted", "ask for fewer"):
        Subset(15)(make_data(train=59))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.4", SymmetricNoise(0.4, 9)),
        (0.4, SymmetricNoise(0.4, 9)),
        (1, SymmetricNoise(1.0, 9)),
        ("symmetric:0.4", SymmetricNoise(0.4, 9)),
        ("uniform:0.25", UniformNoise(0.25, 9)),
        ("0", None),
        (0, None),
        (0.0, None),
        ("uniform:0", None),
    ],
)
def test_noise_is_named_by_a_text(text, wanted):
    assert parse_noise(text, seed=9) == wanted


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        *[
            (text, (repr(text), "from 0 to 1", "symmetric:0.4"))
            for text in ["nan", "-0.1", "1.5", "many", "", "uniform:", "40%"]
        ],
        ("symetric:0.4", ("'symetric'", "did you mean 'symmetric'")),
        (":0.4", ("unknown noise ''", "symmetric, uniform")),
    ],
)
def test_texts_that_name_no_noise_are_refused(refused, text, pieces):
    with refused(*pieces):
        parse_noise(text, seed=0)
