"""Divisions of a split, class by class: which samples are held out, for testing, in a fold or in a subset."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.batch import hard_labels
from tutelage.data.split import Split
from tutelage.data.targets import Targets, class_counts
from tutelage.errors import TutelageError, TutelageWarning

Indices = NDArray[Any]

TEST_SHARE = 0.2  # of a data set that has no test split


def stratified_split(labels: Tensor, size: int, seed: int) -> tuple[Indices, Indices]:
    """Indices of the remaining and of about ``size`` held-out samples, both sorted: (N,) labels to (N - M,) and (M,).

    Classes are held out in proportion, and each keeps at least one sample, so fewer samples are held out if classes are
    too small. Samples without a label (-1) count as a class. Uses scikit-learn where it can stratify.
    """
    array = labels.cpu().numpy()
    remaining, held_out = _sklearn_split(array, size, seed) or _proportional_split(array, size, seed)
    return np.sort(remaining), np.sort(held_out)


def grouped_split(groups: Tensor, size: int, seed: int) -> tuple[Indices, Indices]:
    """Indices of the remaining and of about ``size`` held-out samples, both sorted: (N,) groups to (N - M,) and (M,).

    Whole groups are held out, in random order, and at least one remains.
    """
    numbers, inverse, counts = np.unique(groups.cpu().numpy(), return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, *b"hold out groups"]).permutation(len(numbers))[:-1]
    totals = counts[order].cumsum()
    moved = int(np.abs(totals - size).argmin()) + 1 if len(order) else 0
    held_out = np.isin(inverse, order[:moved])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def division(targets: Targets, labels: Tensor, size: int, seed: int) -> tuple[Indices, Indices]:
    """Indices of the remaining and of about ``size`` held-out samples: whole groups if there are any, else by class."""
    groups = targets.groups(labels)
    if groups is not None:
        return grouped_split(groups, size, seed)
    return stratified_split(targets.strata(labels), size, seed)


def _sklearn_split(labels: Indices, size: int, seed: int) -> tuple[Indices, Indices] | None:
    """scikit-learn's stratified split; ``None`` if it refuses, or if the split leaves a class without samples."""
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or not len(classes) <= size <= len(labels) - len(classes):
        return None
    remaining, held_out = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed, stratify=labels)
    return (remaining, held_out) if np.isin(classes[classes >= 0], labels[remaining]).all() else None


def _proportional_split(labels: Indices, size: int, seed: int) -> tuple[Indices, Indices]:
    """Hold out shuffled samples of each class in proportion to its size, never the first one of a class."""
    generator = np.random.default_rng([seed, *b"hold out"])
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        rank[members] = (np.arange(len(members)) + generator.random()) / len(members)
        rank[members[0]] = -1  # never held out
    order = np.argsort(rank, kind="stable")
    size = min(size, int((rank >= 0).sum()))
    return order[: len(order) - size], order[len(order) - size :]


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The sorted indices of the other folds and of the fold, for each of the random stratified folds."""
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # about fewer samples without a label than folds, which is harmless
        warnings.simplefilter("ignore", UserWarning)
        splits = list(splitter.split(np.zeros(len(labels)), hard_labels(labels).numpy()))
    for train_indices, fold in splits:
        yield torch.from_numpy(train_indices), torch.from_numpy(fold)


def check_folds(labels: Tensor, classes: Sequence[str], folds: int) -> None:
    """Raise an error if a class has samples, but fewer than there are folds."""
    for name, count in zip(classes, class_counts(labels, len(classes)), strict=True):
        if 0 < count < folds:
            raise TutelageError(
                f"class {name!r} has {count} training samples, too few for {folds} folds; use fewer folds"
            )


def ranks_in_strata(strata: Indices, generator: np.random.Generator) -> Indices:
    """The rank of each sample among those of its stratum in a random order, from 0: (N,) int64 to (N,) int64."""
    order = np.lexsort((generator.random(len(strata)), strata))
    _, starts, counts = np.unique(strata[order], return_index=True, return_counts=True)
    ranks = np.empty(len(strata), np.int64)
    ranks[order] = np.arange(len(strata)) - np.repeat(starts, counts)
    return ranks


def nested_order(strata: Indices, generator: np.random.Generator) -> Indices:
    """A random order of all samples whose first n samples are a stratified subset, for every n: (N,) int64 indices.

    A longer beginning contains the shorter ones. The first samples are one of each stratum; after them, strata have
    their shares of n by Webster's method, within one sample of the exact share for strata of similar size.
    """
    ranks = ranks_in_strata(strata, generator)
    _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
    position = np.where(ranks == 0, -1.0, (ranks + 0.5) / counts[inverse])
    return np.lexsort((generator.permutation(len(counts))[inverse], position))


def split_off_test(split: Split, share: float | None, name: str) -> tuple[Split, Split, dict[str, Any]]:
    """A training and a test split from the only split of a data set, by class or whole groups, and always the same.

    Args:
        split: all samples; samples without a label stay in the training split, unless no sample has one.
        share: the share of each class for testing; ``None`` means 0.2, with a warning.
        name: the name of the data set.

    Returns:
        The training split, the test split, and the entry for the record.

    Raises:
        TutelageError: the share is not between 0 and 1, or no class has samples for both splits.
    """
    test_share = TEST_SHARE if share is None else share
    if not 0 < test_share < 1:
        raise TutelageError(f"the share of the test split must be between 0 and 1, got {test_share}")
    grouped = split.targets.groups(split.labels) is not None
    labelled = split.targets.labelled(split.labels)
    candidates = labelled.nonzero().squeeze(1) if labelled.any() and not grouped else torch.arange(len(split))
    size = max(1, round(test_share * len(candidates)))
    _, held_out = division(split.targets, split.labels[candidates], size, seed=0) if len(candidates) else ((), ())
    if len(held_out) == 0:
        small = "is one group" if grouped else f"has classes that are too small among its {len(split)} samples"
        raise TutelageError(f"{name} has no test split, and {small} to take one from; add a test split")
    drawn = "in whole groups" if grouped else "class by class" if labelled.any() else "at random"
    if share is None:
        warnings.warn(
            TutelageWarning(
                f"{name} has no test split: {len(held_out)} of its {len(split)} samples, drawn {drawn}, are used for "
                "testing; --test 0.2 (test=0.2) sets the share"
            ),
            stacklevel=4,
        )
    in_test = torch.zeros(len(split), dtype=torch.bool)
    in_test[candidates[torch.from_numpy(held_out)]] = True
    train, test = (~in_test).nonzero().squeeze(1), in_test.nonzero().squeeze(1)
    return split.subset(train), split.subset(test), {"test_from": "train", "test_share": test_share}
