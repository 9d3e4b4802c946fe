"""Hierarchies of classes, their files, and imprecise labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data import Data, Hierarchy, Imprecise, SymmetricNoise
from tutelage.data.batch import hard_labels
from tutelage.data.conditions import parse_noise

CLASSES = ("hen", "bunting", "poodle", "car")
YAML = """
animal:
  bird: [hen, bunting]
  dog: [poodle]
vehicle: car
"""


@pytest.fixture
def tree(tmp_path: Path) -> str:
    file = tmp_path / "tree.yaml"
    file.write_text(YAML)
    return str(file)


@pytest.fixture
def data(make_data: Any) -> Data:
    data: Data = make_data(train=4000, classes=4)
    return replace(data, classes=CLASSES)


def test_nested_names_are_nodes(tree: str) -> None:
    hierarchy = Hierarchy.read(tree, CLASSES)
    below = {tuple(row.nonzero()[:, 0].tolist()) for row in hierarchy.below}
    assert below == {(0,), (1,), (2,), (3,), (0, 1), (0, 1, 2), (0, 1, 2, 3)}
    assert len(hierarchy) == 4 + 4 + 1  # with a root
    assert [len(hierarchy.path(c)) for c in range(4)] == [4, 4, 4, 3]
    assert hierarchy.distances.tolist() == [[0, 2, 4, 5], [2, 0, 4, 5], [4, 4, 0, 5], [5, 5, 5, 0]]


def test_parents_come_first_in_order_and_edges_restore_the_graph(tree: str) -> None:
    hierarchy = Hierarchy.read(tree, CLASSES)
    position = {node: number for number, node in enumerate(hierarchy.order)}
    assert all(position[p] < position[c] for c, parents in enumerate(hierarchy.parents) for p in parents)
    pairs = list(zip(hierarchy.edges[::2], hierarchy.edges[1::2], strict=True))
    assert pairs == [(child, parent) for child, parents in enumerate(hierarchy.parents) for parent in parents]


def test_json_numbers_and_a_single_group_at_the_top(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text('{"all": {"small": [0, 1], "large": [2, 3]}}')
    hierarchy = Hierarchy.read(file, ("0", "1", "2", "3"))
    assert hierarchy == Hierarchy.of({"all": {"small": ["0", "1"], "large": ["2", "3"]}}, ("0", "1", "2", "3"))
    assert len(hierarchy) == 7  # no root above "all"


def test_coarse_labels_of_an_npz_file_are_groups(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, train_labels=np.array([0, 1, 2, 3, 3, -1]), train_coarse=np.array([7, 5, 7, 5, 5, 5]))
    hierarchy = Hierarchy.read(file, CLASSES)
    assert hierarchy.distances.tolist() == [[0, 4, 2, 4], [4, 0, 4, 2], [2, 4, 0, 4], [4, 2, 4, 0]]


@pytest.mark.parametrize(
    ("tree", "pieces"),
    [
        ({"g": ["hen", "bunting", "poodle"]}, ("class 'car'", "missing")),
        ({"g": ["hen", "bunting", "poodle", "cat"]}, ("unknown class 'cat'", "did you mean 'car'")),
        ({"g": ["bunting", "poodle", "car"], "hen": ["chick"]}, ("unknown class 'chick'",)),
        ({"g": ["bunting", "poodle"], "hen": ["car"]}, ("class 'hen'", "contains others")),
        ({"g": {"h": {"g": ["hen"]}}, "k": ["bunting", "poodle", "car"]}, ("cycle",)),
        ({"g": [["hen", "bunting"], "poodle", "car"]}, ("list in the list of g",)),
        (["hen"], ("animals: [cat, dog]",)),
        ({}, ("animals: [cat, dog]",)),
    ],
)
def test_invalid_hierarchies_are_refused(tree: Any, pieces: Any, refused: Any) -> None:
    with refused(*pieces):
        Hierarchy.of(tree, CLASSES)


@pytest.mark.parametrize(
    ("name", "content", "pieces"),
    [
        ("tree.yaml", "a: [", ("tree.yaml", "nested names")),
        ("tree.json", "{]", ("tree.json", "nested names")),
        ("tree.txt", "a: b", ("tree.txt", ".yaml, .yml, .json or .npz")),
    ],
)
def test_unreadable_files_are_refused(name: str, content: str, pieces: Any, tmp_path: Path, refused: Any) -> None:
    (tmp_path / name).write_text(content)
    with refused(*pieces):
        Hierarchy.read(tmp_path / name, CLASSES)


def test_npz_without_coarse_labels_is_refused(tmp_path: Path, refused: Any) -> None:
    np.savez(tmp_path / "data.npz", train_labels=np.array([0]))
    with refused("train_coarse", "add it"):
        Hierarchy.read(tmp_path / "data.npz", CLASSES)


# --- imprecise labels


def test_labels_become_those_of_their_parent(data: Data, tree: str) -> None:
    imprecise = Imprecise(tree, 0.6, seed=1)(data)
    rows, labels = imprecise.train.labels, data.train.labels
    single = rows.amax(1) == 1
    assert torch.equal(rows[single].argmax(1), labels[single])
    assert set(map(tuple, rows[(labels < 2) & ~single].tolist())) == {(0.5, 0.5, 0.0, 0.0)}
    assert float((~single)[labels < 2].float().mean()) == pytest.approx(0.6, abs=0.04)
    assert single[labels >= 2].all()  # the only class of their group
    assert imprecise.record[-1]["changed"] / 4000 == pytest.approx(0.6, abs=0.04)
    assert torch.equal(imprecise.test.labels, data.test.labels)


@pytest.mark.parametrize(
    ("model", "value", "share"),
    [
        ("geometric", 0.5, 0.5**3),
        ("poisson", 1.0, 1 - 2.5 * np.exp(-1)),
        ("geometric", 1.0, 1.0),
        ("poisson", 0.0, 0.0),
    ],
)
def test_depths_follow_their_distribution(data: Data, tree: str, model: Any, value: float, share: float) -> None:
    rows = Imprecise(tree, value, model, seed=2)(data).train.labels[data.train.labels < 2]
    precise = float((rows.amax(1) == 1).float().mean())
    assert precise == pytest.approx(share, abs=0.03)  # the probability of a depth of 3 or more
    if value in (0.0, 1.0) and share in (0.0, 1.0):
        assert precise == share


def test_imprecise_labels_count_as_unlabelled_and_not_as_wrong(data: Data, tree: str) -> None:
    imprecise = Imprecise(tree, 1.0)(SymmetricNoise(0.3, 1)(data))
    birds = hard_labels(imprecise.train.labels) == -1
    assert birds.any()
    assert not imprecise.train.corrupted[birds].any()
    assert torch.equal(imprecise.train.clean_labels, data.train.labels)
    assert imprecise.hold_out(0.2).validation is not None


def test_verified_and_missing_labels_stay(data: Data, tree: str) -> None:
    labels, trusted = data.train.labels.clone(), torch.zeros(4000, dtype=torch.bool)
    labels[::3], trusted[1::3] = -1, True
    rows = Imprecise(tree, 1.0)(replace(data, train=replace(data.train, labels=labels, trusted=trusted))).train.labels
    assert (rows[::3] == 0).all()
    assert torch.equal(rows[1::3].argmax(1), labels[1::3])
    assert (rows[1::3].amax(1) == 1).all()


def test_imprecise_noise_is_parsed(refused: Any) -> None:
    assert parse_noise("0.2+imprecise:a+b.yaml:0.9", 9) == (SymmetricNoise(0.2, 9), Imprecise("a+b.yaml", 0.9, seed=9))
    assert parse_noise("imprecise:C:\\t.json:poisson:1.5", 9) == (Imprecise("C:\\t.json", 1.5, "poisson", 9),)
    for text in ("imprecise:0.9", "imprecise:tree.yaml", "imprecise:tree.yaml:much"):
        with refused(repr(text), "imprecise:FILE:0.9"):
            parse_noise(text)
    with refused("from 0 to 1", "1.5"):
        parse_noise("imprecise:tree.yaml:1.5")


def test_soft_labels_with_two_largest_classes_have_no_hard_label() -> None:
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert hard_labels(soft).tolist() == [-1, 1, -1, 2]
