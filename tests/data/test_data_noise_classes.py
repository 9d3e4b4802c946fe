"""Noise between certain classes, by confusion matrices and by features, and out-of-distribution noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data import (
    CIFARNoise,
    ClassFlips,
    ConfusionNoise,
    Data,
    FeatureNoise,
    OutsideImages,
    PairFlip,
    Split,
    SymmetricNoise,
    Trusted,
    UniformNoise,
)
from tutelage.data.conditions import parse_noise
from tutelage.data.conditions.class_flips import CIFAR10, SUPERCLASSES

N, C = 6000, 5
CONFUSION = np.array([[90, 10, 0, 0, 0], [5, 80, 15, 0, 0], [1, 1, 96, 1, 1], [0, 0, 3, 97, 0], [4, 3, 2, 1, 90]])


@pytest.fixture
def data(make_data: Callable[..., Data]) -> Data:
    return make_data(train=N, classes=C)


def transitions(noisy: Data) -> np.ndarray:
    """(C, C) counts of the clean classes and the labels."""
    counts = np.zeros((noisy.num_classes, noisy.num_classes), int)
    np.add.at(counts, (noisy.train.clean_labels.numpy(), noisy.train.labels.numpy()), 1)
    return counts


def assert_drawn_from(noisy: Data, matrix: np.ndarray) -> None:
    """Each entry of the empirical matrix is within 3 sigma, and equal where the probability is 0 or 1."""
    counts = transitions(noisy)
    sizes = counts.sum(1, keepdims=True)
    sigma = np.sqrt(matrix * (1 - matrix) / sizes)
    assert (np.abs(counts / sizes - matrix) <= 3 * sigma).all()


def cifar10(size: int = N) -> Data:
    split = Split.of(torch.zeros(size, 4, 4, 3, dtype=torch.uint8), torch.arange(size) % 10)
    return Data("cifar10", CIFAR10, split, split)


def cifar100(size: int = 4000) -> Data:
    names = ("apple", *(f"class{c}" for c in range(98)), "worm")
    split = Split.of(torch.zeros(size, 4, 4, 3, dtype=torch.uint8), torch.arange(size) % 100)
    return Data("cifar100", names, split, split)


# --- constructions that have a transition matrix


def symmetric(rate: float) -> np.ndarray:
    return np.full((C, C), rate / (C - 1)) + (1 - rate - rate / (C - 1)) * np.eye(C)


@pytest.mark.parametrize(
    ("noise", "matrix"),
    [
        (SymmetricNoise(0.4, 1), symmetric(0.4)),
        (UniformNoise(0.4, 1), np.full((C, C), 0.4 / C) + 0.6 * np.eye(C)),
        (PairFlip(0.35, 1), 0.65 * np.eye(C) + 0.35 * np.roll(np.eye(C), 1, axis=1)),
        (ClassFlips(0.4, 1, [(3, 1)]), np.eye(C) + 0.4 * (np.eye(C)[:, [3]] @ (np.eye(C)[[1]] - np.eye(C)[[3]]))),
    ],
    ids=["symmetric", "uniform", "pair", "class bias"],
)
def test_labels_follow_the_transition_matrix(data: Data, noise: Any, matrix: np.ndarray) -> None:
    assert_drawn_from(noise(data), matrix)


def test_asymmetric_noise_of_cifar10_flips_the_five_classes() -> None:
    matrix = np.eye(10)
    for old, new in ((9, 1), (2, 0), (3, 5), (5, 3), (4, 7)):
        matrix[old, old], matrix[old, new] = 0.6, 0.4
    noisy = CIFARNoise(0.4, 2)(cifar10())
    assert_drawn_from(noisy, matrix)
    rate = noisy.record[-1]["realised_rate"]
    assert abs(rate - 0.2) < 3 * math.sqrt(0.2 * 0.6 / N)  # half of the rate on balanced data


def test_asymmetric_noise_of_cifar100_stays_in_the_superclass() -> None:
    noisy = CIFARNoise(1.0)(cifar100())
    target = {int(c): int(k) for c, k in zip(noisy.train.clean_labels, noisy.train.labels, strict=True)}
    assert sorted(target.values()) == list(range(100))
    for c in range(100):
        cycle = [c]
        while target[cycle[-1]] != c:
            cycle.append(target[cycle[-1]])
        assert len(cycle) == 5
        assert {SUPERCLASSES[k] for k in cycle} == {SUPERCLASSES[c]}
        assert target[c] > c or target[c] == min(cycle)  # the next one in the order of the labels


def test_superclasses_are_those_of_the_published_set() -> None:
    file = Path("runs/data/cifar100.npz")
    if not file.exists():
        pytest.skip(f"{file} is missing")
    with np.load(file) as archive:
        published = dict(zip(archive["train_labels"].tolist(), archive["train_coarse"].tolist(), strict=True))
    assert [published[c] for c in range(100)] == list(SUPERCLASSES)


def test_flips_are_named_by_class_or_number(data: Data) -> None:
    by_name = ClassFlips(0.5, 3, [("c3", "c0"), ("c1", "c2")])(data)
    assert torch.equal(by_name.train.labels, ClassFlips(0.5, 3, [(3, 0), (1, 2)])(data).train.labels)
    counts = transitions(by_name)
    assert [tuple(pair) for pair in np.argwhere(counts - np.diag(np.diag(counts)))] == [(1, 2), (3, 0)]


@pytest.mark.parametrize(
    ("flips", "pieces"),
    [
        ([("c1", "c9")], ("class", "'c9'")),
        ([(1, 7)], ("class", "'7'")),
        ([(1, 1)], ("one other class", "(1, 1)")),
        ([(1, 2), (1, 3)], ("one other class", "one pair")),
    ],
)
def test_impossible_flips_are_refused(data: Data, refused: Any, flips: Any, pieces: tuple[str, ...]) -> None:
    with refused(*pieces):
        ClassFlips(0.4, 0, flips)(data)


def test_asymmetric_noise_of_other_classes_is_refused(data: Data, refused: Any) -> None:
    with refused("CIFAR-10 and CIFAR-100", "made", "flip:0.4:3:5,5:3"):
        CIFARNoise(0.4)(data)


# --- exact counts


@pytest.mark.parametrize("rate", [0.1, 0.333, 0.6])
def test_confusion_noise_changes_an_exact_number_by_the_rows_of_the_matrix(data: Data, rate: float) -> None:
    noisy = ConfusionNoise(rate, CONFUSION, seed=1)(data)
    counts = transitions(noisy)
    changed = counts - np.diag(np.diag(counts))
    assert int(changed.sum()) == round(rate * N)
    weights = CONFUSION - np.diag(np.diag(CONFUSION))
    expected = weights / weights.sum(1, keepdims=True)
    sizes = changed.sum(1, keepdims=True)
    assert (np.abs(changed / sizes - expected) <= 3 * np.sqrt(expected * (1 - expected) / sizes)).all()


def test_higher_rates_change_the_same_labels_and_more(data: Data) -> None:
    low, high = (ConfusionNoise(rate, CONFUSION, seed=1)(data).train for rate in (0.2, 0.5))
    changed = low.labels != data.train.labels
    assert torch.equal(high.labels[changed], low.labels[changed])
    assert not torch.equal(ConfusionNoise(0.2, CONFUSION, seed=2)(data).train.labels, low.labels)


def test_missing_and_verified_labels_do_not_count(data: Data) -> None:
    labels = data.train.labels.clone()
    labels[::4] = -1
    partial = Trusted(100)(replace(data, train=replace(data.train, labels=labels)))
    assert partial.train.trusted is not None
    noisy = ConfusionNoise(0.5, CONFUSION)(partial)
    changed = noisy.train.labels != labels
    free = (labels >= 0) & ~partial.train.trusted
    assert int(changed.sum()) == round(0.5 * int(free.sum()))
    assert not changed[~free].any()


def test_class_that_is_never_confused_is_refused(data: Data, refused: Any) -> None:
    with refused("never confuses the class 'c0'", "add a small number"):
        ConfusionNoise(0.4, np.eye(C))(data)


def test_confusion_of_another_shape_is_refused(data: Data, refused: Any) -> None:
    with refused("5 x 5", "(3, 3)"):
        ConfusionNoise(0.4, np.eye(3))(data)
    with refused("0 or more", "-1"):
        ConfusionNoise(0.4, -np.eye(C))(data)


def test_features_decide_which_labels_change(make_data: Callable[..., Data]) -> None:
    data = make_data(train=8, classes=4)
    probabilities = np.full((8, 4), 0.01)
    for row, (other, value) in enumerate(
        [(1, 0.2), (0, 0.3), (3, 0.55), (2, 0.1), (2, 0.45), (3, 0.0), (0, 0.9), (0, 0)]
    ):
        probabilities[row, row % 4] = 1 - value
        probabilities[row, other] = value
    order = [6, 2, 4, 1, 0, 3]  # labels that are not predicted (rows 6 and 2), then by the second probability
    for count in range(1, 7):
        labels = FeatureNoise(count / 8, probabilities)(data).train.labels
        changed = {*(labels != data.train.labels).nonzero()[:, 0].tolist()}
        assert changed == {*order[:count]}
        for row in changed:
            assert int(labels[row]) == [1, 0, 3, 2, 2, 3, 0, 0][row]


def test_probabilities_are_looked_up_by_index(data: Data) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(C), N)
    whole = FeatureNoise(0.0, probabilities)(data)
    assert torch.equal(whole.train.labels, data.train.labels)
    rows = torch.arange(100, 400)
    part = replace(data, train=data.train.subset(rows))
    expected = FeatureNoise(0.4, probabilities[100:400])(
        replace(part, train=replace(part.train, index=torch.arange(300)))
    )
    assert torch.equal(FeatureNoise(0.4, probabilities)(part).train.labels, expected.train.labels)
    assert int((expected.train.labels != part.train.labels).sum()) == 120


def test_too_few_probabilities_are_refused(data: Data, refused: Any) -> None:
    with refused("(6, 5)", "6000 or more, 5"):
        FeatureNoise(0.4, np.ones((6, C)))(data)


# --- out-of-distribution noise


@pytest.fixture
def outside() -> Data:
    """Images that are flat, of 200 + class, with two classes."""
    labels = torch.arange(900) % 3
    images = (200 + labels).to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 1).clone()
    split = Split.of(images, labels)
    return Data("flat", ("x", "y", "z"), split, split)


def test_exactly_so_many_images_are_replaced_and_labels_stay(data: Data, outside: Data) -> None:
    noisy = OutsideImages(0.25, outside, seed=4)(data)
    replaced = (noisy.train.inputs != data.train.inputs).flatten(1).any(1)  # type: ignore[union-attr]
    assert int(replaced.sum()) == N // 4 == noisy.record[-1]["replaced"]
    assert torch.equal(noisy.train.labels, data.train.labels)
    assert torch.equal(noisy.train.corrupted, replaced)
    assert (noisy.train.clean_labels[replaced] == -1).all()
    pixels = noisy.train.inputs[replaced]  # type: ignore[index]
    assert set(pixels.unique().tolist()) == {200, 201, 202}
    assert torch.equal(noisy.test.inputs, data.test.inputs)  # type: ignore[arg-type]
    repeated, more = OutsideImages(0.25, outside, seed=4)(data), OutsideImages(0.5, outside, seed=4)(data)
    assert torch.equal(repeated.train.inputs, noisy.train.inputs)  # type: ignore[arg-type]
    assert (more.train.corrupted | ~replaced).all()


def test_each_outside_image_is_used_once_while_there_are_enough(data: Data) -> None:
    images = (
        torch.arange(3000).view(-1, 1, 1, 1).expand(-1, 8, 8, 1) // torch.tensor([1, 256]).repeat(4).view(8, 1) % 256
    )
    split = Split.of(images.to(torch.uint8).contiguous(), torch.zeros(3000, dtype=torch.int64))
    noisy = OutsideImages(0.5, Data("numbers", ("n",), split, split))(data)
    assert len(noisy.train.inputs[noisy.train.corrupted].flatten(1).unique(dim=0)) == 3000  # type: ignore[index]


def test_confusion_chooses_the_outside_class(data: Data, outside: Data) -> None:
    confusion = np.array([[1.0, 0, 2, 1, 1], [0, 1, 2, 0, 1], [0, 0, 0, 0, 2]])
    noisy = OutsideImages(0.5, outside, seed=1, confusion=confusion)(data)
    replaced = noisy.train.corrupted
    kinds = noisy.train.inputs[replaced][:, 0, 0, 0].long() - 200  # type: ignore[index]
    expected = confusion / confusion.sum(0)
    for label in range(C):
        of_label = kinds[noisy.train.labels[replaced] == label]
        shares = torch.bincount(of_label, minlength=3).double().numpy() / len(of_label)
        sigma = np.sqrt(expected[:, label] * (1 - expected[:, label]) / len(of_label))
        assert (np.abs(shares - expected[:, label]) <= 3 * sigma).all()


def test_images_of_another_shape_and_files_are_refused(data: Data, outside: Data, refused: Any) -> None:
    with refused("(4, 4, 3)", "(8, 8, 1)", "same shape"):
        OutsideImages(0.2, cifar10(20))(data)

    class Files:
        shape = (N, 8, 8, 1)

        def __getitem__(self, index: Any) -> torch.Tensor:
            return torch.zeros(len(index), 8, 8, 1, dtype=torch.uint8)

    files = replace(data, train=replace(data.train, inputs=Files()))
    with refused("images in memory", "npz:FILE"):
        OutsideImages(0.2, outside)(files)


# --- text


def test_conditions_are_parsed(tmp_path: Path, data: Data) -> None:
    matrix = str(tmp_path / "m.npy")
    np.save(matrix, CONFUSION)
    assert parse_noise("asymmetric:0.4", 3) == (CIFARNoise(0.4, 3),)
    assert parse_noise("flip:0.4:3:5,cat:dog", 3) == (ClassFlips(0.4, 3, [("3", "5"), ("cat", "dog")]),)
    assert parse_noise(f"confusion:0.4:{matrix}+missing:0.1", 3)[0] == ConfusionNoise(0.4, matrix, 3)
    assert parse_noise(f"features:0.4:{matrix}", 3) == (FeatureNoise(0.4, matrix),)
    assert parse_noise("outside:0.4:npz:other.npz", 3) == (OutsideImages(0.4, "npz:other.npz", 3),)
    assert parse_noise(f"outside:0.4:{matrix}:digits", 3) == (OutsideImages(0.4, "digits", 3, matrix),)
    assert parse_noise(f"confusion:0:{matrix}") == ()
    assert torch.equal(
        parse_noise(f"confusion:0.4:{matrix}", 3)[0](data).train.labels,
        ConfusionNoise(0.4, CONFUSION, 3)(data).train.labels,
    )


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("flip:0.4", ("flip:0.4", "flip:0.4:3:5,5:3")),
        ("flip:0.4:3", ("pairs of classes", "flip:0.4:3:5,5:3")),
        ("flip:2:3:5", ("rate from 0 to 1",)),
        ("confusion:x:file.csv", ("rate from 0 to 1", "confusion:0.4:FILE")),
        ("outside:0.3:", ("outside:0.4:DATA",)),
        ("asymmetric:2", ("rate from 0 to 1",)),
    ],
)
def test_incomplete_conditions_are_refused(refused: Any, text: str, pieces: tuple[str, ...]) -> None:
    with refused(*pieces):
        parse_noise(text)


def test_rates_outside_of_0_to_1_are_refused(refused: Any, outside: Data) -> None:
    for make in (
        lambda: ConfusionNoise(1.5, CONFUSION),
        lambda: FeatureNoise(-0.1, CONFUSION),
        lambda: OutsideImages(float("nan"), outside),
        lambda: ClassFlips(2, 0, [(0, 1)]),
    ):
        with refused("a noise rate is a number from 0 to 1"):
            make()
