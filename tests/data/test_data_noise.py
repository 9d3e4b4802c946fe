"""Pair, matrix, instance-dependent and missing-label noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tutelage.data import AsymmetricNoise, Data, InstanceNoise, MissingLabels, PairFlip, Split
from tutelage.data.conditions import parse_noise
from tutelage.data.conditions.instance import flip_rates

N, C = 6000, 5
MATRIX = np.array(
    [
        [0.5, 0.5, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.0],
        [0.1, 0.2, 0.4, 0.2, 0.1],
        [0.0, 0.0, 0.3, 0.7, 0.0],
        [0.3, 0.0, 0.0, 0.0, 0.7],
    ]
)


@pytest.fixture
def data(make_data) -> Data:
    return make_data(train=N, classes=C)


def test_pair_noise_flips_to_the_next_class_cyclically(data):
    labels, clean = PairFlip(0.4, seed=1)(data).train.labels, data.train.labels
    hit = labels != clean
    assert torch.equal(labels[hit], (clean[hit] + 1) % C)
    assert set(clean[hit].tolist()) == set(range(C))


def test_missing_labels_keep_their_clean_labels(data):
    partly_labelled = MissingLabels(0.3, seed=2)(data)
    is_missing = partly_labelled.train.labels == -1
    assert torch.equal(partly_labelled.train.labels[~is_missing], data.train.labels[~is_missing])
    assert torch.equal(partly_labelled.train.clean_labels, data.train.labels)
    assert not partly_labelled.train.corrupted.any()
    entry = partly_labelled.record[-1]
    assert entry["changed"] == int(is_missing.sum())
    counts = np.array(entry["transition_counts"])
    assert counts.tolist() == np.diag(torch.bincount(data.train.labels[~is_missing]).numpy()).tolist()
    assert (MissingLabels(1.0)(data).train.labels == -1).all()


# --- transition matrix


def test_labels_are_sampled_from_the_rows_of_the_matrix(data):
    noisy_data = AsymmetricNoise(MATRIX, seed=1)(data)
    entry = noisy_data.record[-1]
    per_class = N // C
    counts = np.array(entry["transition_counts"])
    sigma = np.sqrt(MATRIX * (1 - MATRIX) / per_class)
    assert (np.abs(counts / per_class - MATRIX) <= 3 * sigma).all()  # and exactly equal for probabilities 0 and 1
    expected_rate = float(1 - np.trace(MATRIX) / C)
    assert abs(entry["realised_rate"] - expected_rate) < 3 * math.sqrt(expected_rate * (1 - expected_rate) / N)
    assert entry["realised_rate"] == float((noisy_data.train.labels != data.train.labels).double().mean())
    assert entry["matrix"] == MATRIX.tolist()
    assert entry["seed"] == 1


def test_identity_matrix_changes_no_label_and_permutation_changes_all(data):
    assert torch.equal(AsymmetricNoise(np.eye(C))(data).train.labels, data.train.labels)
    permuted_data = AsymmetricNoise(np.roll(np.eye(C), 2, axis=1))(data)
    assert torch.equal(permuted_data.train.labels, (data.train.labels + 2) % C)


def test_equal_seeds_give_equal_labels(data):
    first, repeated, other = (AsymmetricNoise(MATRIX, seed)(data).train.labels for seed in (5, 5, 6))
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)


def test_equal_matrices_compare_equal(data):
    assert AsymmetricNoise(MATRIX) == AsymmetricNoise(MATRIX.tolist())
    assert AsymmetricNoise(MATRIX) != AsymmetricNoise(np.eye(C))
    assert hash(AsymmetricNoise(MATRIX)) == hash(AsymmetricNoise(MATRIX.tolist()))


def test_rounded_rows_are_normalised_and_absent_labels_stay_absent(make_data):
    data = make_data(train=900, classes=3)
    labels = data.train.labels.clone()
    labels[::2] = -1
    noisy_data = AsymmetricNoise(np.full((3, 3), 0.333))(replace(data, train=replace(data.train, labels=labels)))
    assert torch.equal(noisy_data.train.labels == -1, labels == -1)
    assert set(noisy_data.train.labels.tolist()) == {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("matrix", "pieces"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], ("row 1", "0.9", "every row sums to 1")),
        ([[1.5, -0.5], [0.0, 1.0]], ("-0.5", "row 0, column 1", "0 or more")),
        ([[float("nan"), 0.5], [0.0, 1.0]], ("nan", "row 0, column 0")),
        ([[float("inf"), 0.0], [0.0, 1.0]], ("inf", "row 0, column 0")),
        ([[0.5, 0.5]], ("C x C", "(1, 2)")),
        ([0.5, 0.5], ("C x C", "(2,)")),
        ([], ("C x C", "(0,)")),
        ([[1.0]], ("C x C", "2 classes", "(1, 1)")),
        ([[1.0, 0.0], [1.0]], ("C rows of C numbers", "nested lists")),
        ("0.4", ("C x C", "()")),
        ("many", ("C rows of C numbers", "'many'")),
    ],
)
def test_invalid_transition_matrices_are_refused(refused, matrix, pieces):
    with refused(*pieces):
        AsymmetricNoise(matrix)


def test_matrix_of_another_size_is_refused(make_data, refused):
    with refused("5 x 5", "made has 4 classes", "row and a column"):
        AsymmetricNoise(MATRIX)(make_data())


@pytest.fixture
def write_matrix(tmp_path):
    """A function that writes the matrix to a file with the given suffix."""

    def write(suffix):
        file = tmp_path / f"matrix{suffix}"
        if suffix == ".npy":
            np.save(file, MATRIX)
        else:
            rows = [",".join(map(str, row)) for row in MATRIX.tolist()]
            file.write_text(json.dumps(MATRIX.tolist()) if suffix == ".json" else "\n".join(rows) + "\n\n")
        return file

    return write


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".json"])
def test_matrix_is_read_from_a_file(write_matrix, suffix):
    file = write_matrix(suffix)
    assert AsymmetricNoise.read(file, seed=4) == AsymmetricNoise(MATRIX, seed=4)
    assert AsymmetricNoise.read(str(file)) == AsymmetricNoise(MATRIX)
    assert parse_noise(f"matrix:{file}", seed=4) == (AsymmetricNoise(MATRIX, seed=4),)


@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        ("m.csv", b"a,b\n1,0\n", ("m.csv", "matrix of numbers", "'a'")),
        ("m.csv", b"1,0\n1\n", ("m.csv", "matrix of numbers")),
        ("m.csv", b"", ("m.csv", "C x C", "(0,)")),
        ("m.csv", b"\xff\xfe", ("m.csv", "matrix of numbers")),
        ("m.csv", b"0.5,0.4\n0,1", ("m.csv", "row 0", "0.9")),
        ("m.json", b"{", ("m.json", "matrix of numbers")),
        ("m.json", b'{"a": 1}', ("m.json", "matrix of numbers")),
        ("m.json", b"[" * 100_000, ("m.json", "matrix of numbers")),
        ("m.npy", b"", ("m.npy", "matrix of numbers")),
        ("m.npy", b"rubbish", ("m.npy", "matrix of numbers")),
        ("m.txt", b"1,0\n0,1", ("m.txt", ".csv, .npy, .json")),
    ],
)
def test_files_without_a_matrix_are_refused(tmp_path, refused, name, content, pieces):
    (tmp_path / name).write_bytes(content)
    with refused(*pieces):
        AsymmetricNoise.read(tmp_path / name)


def test_matrix_file_is_never_unpickled(tmp_path, refused):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    np.save(tmp_path / "m.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with refused("m.npy", "matrix of numbers", "allow_pickle=False"):
        AsymmetricNoise.read(tmp_path / "m.npy")
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    with refused("text.npy", "no array of numbers"):
        AsymmetricNoise.read(tmp_path / "text.npy")


def test_missing_matrix_file_is_refused(tmp_path, refused):
    with refused("nowhere.csv", "No such file", "check the path"):
        AsymmetricNoise.read(tmp_path / "nowhere.csv")


# --- instance-dependent noise


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.5, 0.8, 1.0])
def test_flip_rates_have_mean_and_bounds_of_the_truncated_normal(rate):
    draws = (np.arange(100_000) + 0.5) / 100_000
    rates = flip_rates(draws, rate)
    width = min(rate, 1 - rate)
    assert (np.abs(rates - rate) <= width + 1e-12).all()
    assert (np.diff(rates) >= 0).all()
    assert float(rates.mean()) == pytest.approx(rate, abs=1e-6)
    if 0 < rate < 1:
        from scipy.stats import truncnorm

        distribution = truncnorm(-width / 0.1, width / 0.1, loc=rate, scale=0.1)
        np.testing.assert_allclose(rates, distribution.ppf(draws), atol=1e-9)
        assert float(rates.std()) == pytest.approx(distribution.std(), abs=1e-4)


def test_instance_noise_equals_a_reference_per_sample(make_data):
    """The reference computes each label in float64 as the docstring of ``InstanceNoise`` defines it."""
    data, rate, seed = make_data(train=400, classes=4), 0.5, 3
    noisy_labels = InstanceNoise(rate, seed)(data).train.labels.tolist()

    def stream(name):
        return np.random.default_rng([seed, *name.encode()])

    mean, std = data.mean_std
    directions = [stream(f"InstanceNoise {y}").standard_normal((64, 4), dtype=np.float32) for y in range(4)]
    draws, uniform, choices = stream("InstanceNoise").random((3, 400))
    rates = flip_rates(draws, rate)
    for i, label in enumerate(data.train.labels.tolist()):
        pixels = (data.train.inputs[i].numpy().astype(float) / 255 - mean[0]) / std[0]
        scores = pixels.reshape(-1) @ directions[label].astype(float)
        other_classes = [c for c in range(4) if c != label]
        weights = np.array([math.exp(scores[c] - max(scores[o] for o in other_classes)) for c in other_classes])
        up_to = np.cumsum(weights / weights.sum())
        expected = (
            other_classes[int(np.searchsorted(up_to, choices[i], side="right"))] if uniform[i] < rates[i] else label
        )
        assert noisy_labels[i] == expected


def test_instance_noise_gives_similar_images_the_same_wrong_class():
    """If all images of a class are equal, most wrong labels agree; with symmetric noise a third would."""
    generator = torch.Generator().manual_seed(0)
    faces = torch.randint(256, (4, 8, 8, 3), generator=generator, dtype=torch.uint8)
    labels = torch.arange(4000) % 4
    part = Split.of(faces[labels], labels)
    counts = np.array(InstanceNoise(0.4)(Data("faces", tuple("abcd"), part, part)).record[-1]["transition_counts"])
    np.fill_diagonal(counts, 0)
    assert (counts.max(1) > 0.8 * counts.sum(1)).all()


def test_streamed_images_get_the_same_noisy_labels_as_images_in_memory(data):
    class Files:
        def __init__(self, images):
            self.images = images

        @property
        def shape(self):
            return tuple(self.images.shape)

        def __getitem__(self, index):
            return self.images[index]

    small = replace(data, train=data.train.subset(torch.arange(500)))
    streamed = replace(small, train=replace(small.train, inputs=Files(small.train.inputs)))
    noise = InstanceNoise(0.4, seed=1)
    assert torch.equal(noise(streamed).train.labels, noise(small).train.labels)
