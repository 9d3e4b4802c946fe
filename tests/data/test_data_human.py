"""Human labels read from a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.data import Data, HumanLabels, LongTail, Split, Subset, SymmetricNoise, open_data

N, C = 60, 4


@pytest.fixture
def data(make_data) -> Data:
    return make_data(train=N, classes=C)


@pytest.fixture
def human_labels(data) -> np.ndarray:
    """Human labels: every fifth differs from the clean label, and one is missing."""
    labels = data.train.labels.numpy().copy()
    labels[::5] = (labels[::5] + 1 + np.arange(N // 5) % 3) % C
    labels[7] = -1
    return labels


@pytest.fixture
def save_labels(tmp_path, data, human_labels):
    """A function that writes columns (default: ``worker`` and ``clean``) to a file with the given suffix."""

    def save(suffix=".npz", **columns):
        file = tmp_path / f"labels{suffix}"
        columns = columns or {"worker": human_labels, "clean": data.train.labels.numpy()}
        if suffix == ".npz":
            np.savez(file, **columns)
        else:
            rows = zip(*columns.values(), strict=True)
            file.write_text("\n".join(",".join(map(str, row)) for row in [tuple(columns), *rows]) + "\n")
        return file

    return save


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_labels_are_replaced_by_those_of_the_file(data, save_labels, human_labels, suffix):
    file = save_labels(suffix)
    relabelled_data = HumanLabels(file, "worker")(data)
    assert relabelled_data.train.labels.tolist() == human_labels.tolist()
    assert torch.equal(relabelled_data.train.clean_labels, data.train.labels)
    assert int(relabelled_data.train.corrupted.sum()) == N // 5
    counts = np.zeros((C, C), int)
    for before, after in zip(data.train.labels.tolist(), human_labels.tolist(), strict=True):
        if after >= 0:
            counts[before, after] += 1
    assert relabelled_data.record[-1] == {
        "condition": "HumanLabels",
        "file": str(file),
        "column": "worker",
        "labelled": N,
        "changed": N // 5 + 1,
        "realised_rate": (N // 5 + 1) / N,
        "transition_counts": counts.tolist(),
        "validation": "absent",
    }
    assert torch.equal(relabelled_data.test.labels, data.test.labels)


def test_integer_types_and_files_with_a_single_column_are_accepted(data, save_labels, human_labels):
    file = save_labels(worker=np.where(human_labels < 0, 3, human_labels).astype(np.uint8))
    assert (
        HumanLabels(str(file), "worker")(data).train.labels.tolist()
        == np.where(human_labels < 0, 3, human_labels).tolist()
    )


def test_human_labels_replace_absent_labels(data, save_labels, human_labels):
    labels = data.train.labels.clone()
    labels[:10] = -1
    unlabelled_data = replace(data, train=replace(data.train, labels=labels, clean_labels=labels))
    relabelled_data = HumanLabels(save_labels(), "worker")(unlabelled_data)
    assert relabelled_data.train.labels.tolist() == human_labels.tolist()
    assert relabelled_data.record[-1]["labelled"] == N - 10
    assert relabelled_data.record[-1]["changed"] == 10  # samples 10, 15, ..., 55; earlier ones had no label


@pytest.mark.parametrize("choose", [Subset(5, seed=1), LongTail(0.2)])
def test_human_labels_commute_with_sample_selection(data, save_labels, human_labels, choose):
    human_labels[7] = 1  # a missing label would be dropped only if the selection came after the labels
    human = HumanLabels(save_labels(), "worker")
    first, last = choose(human(data)), human(choose(data))
    assert torch.equal(first.train.index, last.train.index)
    assert torch.equal(first.train.labels, last.train.labels)
    assert torch.equal(first.train.clean_labels, last.train.clean_labels)


def test_human_labels_replace_noisy_labels(data, save_labels, human_labels):
    relabelled_data = HumanLabels(save_labels(), "worker")(SymmetricNoise(0.5)(data))
    assert relabelled_data.train.labels.tolist() == human_labels.tolist()


def test_subset_of_a_published_set_is_matched_by_its_index(tmp_path, save_labels, data, human_labels):
    index = np.array([3, 50, 8, 21, 2, 57])
    arrays = {
        "train_images": data.train.inputs.numpy()[index],
        "train_labels": data.train.labels.numpy()[index],
        "train_index": index,
        "test_images": data.test.inputs.numpy(),
        "test_labels": data.test.labels.numpy(),
    }
    np.savez(tmp_path / "part.npz", **arrays)
    part = open_data(f"npz:{tmp_path / 'part.npz'}")
    assert part.train.index.tolist() == index.tolist()
    assert part.test.index.tolist() == list(range(20))
    assert HumanLabels(save_labels(), "worker")(part).train.labels.tolist() == human_labels[index].tolist()


@pytest.mark.parametrize(
    ("index", "pieces"),
    [
        (np.array([0, 1, 2, -1]), ("-1", "[3]", "0 or more")),
        (np.array([0, 1, 2, 1]), ("is 1", "[3]", "needs its own number")),
        (np.arange(5), ("(5,)", "(4,) integers")),
        (np.arange(4.0), ("float64", "(4,) integers")),
    ],
)
def test_invalid_index_is_refused(tmp_path, refused, index, pieces):
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "d.npz", **arrays, train_index=index)
    with refused("train_index", *pieces):
        open_data(f"npz:{tmp_path / 'd.npz'}")


# --- errors


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_unknown_column_is_refused_and_available_columns_are_listed(data, save_labels, refused, suffix):
    file = save_labels(suffix)
    with refused("unknown column 'worke'", "did you mean 'worker'", "clean, worker", file):
        HumanLabels(file, "worke")(data)


def test_file_of_another_length_is_refused(data, save_labels, human_labels, refused):
    for rows in (human_labels[:-1], np.append(human_labels, 0)):
        file = save_labels(worker=rows)
        with refused(file, f"{len(rows)} rows", f"needs {N}", "original training split"):
            HumanLabels(file, "worker")(data)
    two_samples = data.train.subset(torch.tensor([1, 40]))
    file = save_labels(worker=human_labels[:40], clean=data.train.labels.numpy()[:40])
    with refused("40 rows", "at least 41"):
        HumanLabels(file, "worker")(replace(data, train=two_samples))


def test_columns_of_different_lengths_are_refused(data, save_labels, human_labels, refused):
    file = save_labels(worker=human_labels, clean=human_labels[:-1])
    with refused(file, "different lengths", "'worker': 60", "'clean': 59"):
        HumanLabels(file, "worker")(data)


def test_subset_that_cannot_be_verified_against_the_file_is_refused(data, save_labels, human_labels, refused):
    file = save_labels(worker=human_labels)
    with refused("a subset of 20 samples", file, "'clean'", "before the subset is selected"):
        HumanLabels(file, "worker")(Subset(5)(data))


@pytest.mark.parametrize(("value", "row"), [(4, 9), (-2, 0), (255, 59)])
def test_labels_out_of_range_are_refused(data, save_labels, human_labels, refused, value, row):
    human_labels[row] = value
    file = save_labels(worker=human_labels)
    with refused(f"worker of {file} is {value}", f"row {row}", "0 to 3"):
        HumanLabels(file, "worker")(data)


def test_rows_in_another_order_are_refused(data, save_labels, human_labels, refused):
    clean = data.train.labels.numpy().copy()
    clean[[11, 12]] = clean[[12, 11]]
    file = save_labels(worker=human_labels, clean=clean)
    with refused("'clean'", file, "is 0 in row 11", "made has 3", "2 of 60 differ", "order"):
        HumanLabels(file, "worker")(data)


@pytest.mark.parametrize(
    ("suffix", "column", "pieces"),
    [
        (".npz", np.zeros(N), ("float64", "(N,) integers")),
        (".npz", np.zeros((N, 1), int), ("(60, 1)", "(N,) integers")),
        (".npz", np.array(["cat"] * N), ("<U3", "(N,) integers")),
        (".npz", np.array([None] * N), ("cannot be read", "Python objects")),
        (".csv", ["cat", *[0] * (N - 1)], ("worker", "'cat'", "line 2", "whole numbers")),
        (".csv", [0, "1.5", *[0] * (N - 2)], ("'1.5'", "line 3")),
        (".csv", [0, "9" * 30, *[0] * (N - 2)], ("line 3", "whole numbers")),
    ],
)
def test_columns_that_are_not_labels_are_refused(data, save_labels, refused, suffix, column, pieces):
    file = save_labels(suffix, worker=column)
    with refused(file, *pieces):
        HumanLabels(file, "worker")(data)


@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        ("d.npz", b"rubbish", ("d.npz", "not a readable .npz")),
        ("d.csv", b"worker,clean\n1\n1,1\n", ("clean", "missing", "line 2")),
        ("d.csv", b"", ("unknown column 'worker'", "d.csv")),
        ("d.csv", b"worker\n", ("d.csv", "0 rows", "needs 60")),
        ("d.csv", b"worker\n\xff\xff", ("d.csv", "labels")),
        ("d.pt", b"", ("d.pt", ".npz, .csv")),
    ],
)
def test_files_without_labels_are_refused(data, tmp_path, refused, name, content, pieces):
    (tmp_path / name).write_bytes(content)
    with refused(*pieces):
        HumanLabels(tmp_path / name, "worker")(data)


def test_missing_files_and_folders_are_refused(data, tmp_path, refused):
    with refused("nowhere.npz", "No such file", "check the path"):
        HumanLabels(tmp_path / "nowhere.npz", "worker")(data)
    (tmp_path / "folder.csv").mkdir()
    with refused("folder.csv", "directory"):
        HumanLabels(tmp_path / "folder.csv", "worker")(data)


def test_soft_labels_are_refused(data, save_labels, refused):
    soft = replace(data, train=replace(data.train, labels=torch.full((N, C), 0.25)))
    with refused("HumanLabels", "hard labels", "(60, 4)"):
        HumanLabels(save_labels(), "worker")(soft)


# --- CIFAR-10N


@pytest.fixture(scope="module")
def cifar() -> tuple[Data, Path]:
    """The labels of the CIFAR-10 training split with images of one pixel, and the CIFAR-10N file."""
    folder = Path(os.environ.get("TUTELAGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    files = [folder / f"{name}.npz" for name in ("cifar10-train-1of2", "cifar10-train-2of2", "cifar10n-human-labels")]
    if missing_files := [file.name for file in files if not file.is_file()]:
        pytest.skip(f"no {', '.join(missing_files)} at TUTELAGE_DATA or in ../shared/data")
    labels = np.concatenate([np.load(file, allow_pickle=False)["labels"] for file in files[:2]]).astype(np.int64)
    part = Split.of(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.from_numpy(labels))
    return Data("cifar10", tuple("0123456789"), part, part.subset(torch.arange(10))), files[2]


@pytest.mark.parametrize(
    ("column", "percent"),
    [("aggregate", 9.03), ("random1", 17.23), ("random2", 18.12), ("random3", 17.64), ("worst", 40.21)],
)
def test_cifar10n_has_its_published_noise_rates(cifar, column, percent):
    """The rates of the paper [from memory]; ``aggregate`` of the published file is 9.01 %."""
    data, file = cifar
    relabelled_data = HumanLabels(file, column)(data)
    assert 100 * relabelled_data.record[-1]["realised_rate"] == pytest.approx(percent, abs=0.021)
    assert torch.equal(relabelled_data.train.clean_labels, data.train.labels)


def test_cifar10n_accepts_a_subset_and_refuses_another_order(cifar, refused):
    data, file = cifar
    human = HumanLabels(file, "worst")
    first, last = Subset(100)(human(data)), human(Subset(100)(data))
    assert torch.equal(first.train.labels, last.train.labels)
    assert torch.equal(first.train.index, last.train.index)
    reversed_train = data.train.subset(torch.arange(50_000).flip(0))
    reversed_train = replace(reversed_train, index=torch.arange(50_000))
    with refused("'clean'", "differ", "order"):
        human(replace(data, train=reversed_train))
