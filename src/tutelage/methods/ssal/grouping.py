"""Groups of classes from a confusion matrix: Palacio, Engler, Hees, Dengel 2020."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.errors import TutelageError

SIZE_MARGIN = 1.1  # a group is full from 1.1 K / G classes on


def class_groups(confusion: Tensor, count: int, generator: torch.Generator, *, separate: bool = False) -> Tensor:
    """Divide classes into groups of about equal size whose members are confused with each other.

    With C the confusion matrix without its diagonal, D = max(C) - C off the diagonal and 0 on it, and
    S = (D + D^T) / 2, the distance d(i, g) of class i and group g is the mean of S_ij over the members j of g.

    1. The class with the smallest row sum of S opens the first group.
    2. While a group is empty, the class that is farthest from its nearest group opens the next.
    3. Of the remaining classes, the one that is nearest to a group is assigned next, to the nearest group that holds
       fewer than 1.1 K / G classes.

    Ties are broken at random. No group gets more than ceil(1.1 K / G) classes, and none is empty.

    Args:
        confusion: (K, K), entry (i, j) counts the samples of class i that were predicted as j.
        count: G, the number of groups, 1 to K.
        generator: breaks ties.
        separate: separate the classes that are confused instead ("split similar"): D is C off the diagonal.

    Returns:
        (K,) int64, the number of each class's group.

    Raises:
        TutelageError: the matrix is not square, or there cannot be so many groups.
    """
    classes = len(confusion)
    if confusion.shape != (classes, classes) or not 1 <= count <= classes:
        raise TutelageError(
            f"a confusion matrix (K, K) is divided into 1 to K groups, got shape {tuple(confusion.shape)} and {count} "
            "groups"
        )
    distances = _distances(confusion, separate=separate)
    groups = torch.full((classes,), -1)
    groups[_any_of(-distances.sum(1), generator)] = 0
    for number in range(1, count):
        nearest = _to_groups(distances, groups, number).amin(1)
        groups[_any_of(nearest.masked_fill(groups >= 0, -math.inf), generator)] = number
    while bool((groups < 0).any()):
        to_groups = _to_groups(distances, groups, count)
        chosen = _any_of(-to_groups.amin(1).masked_fill(groups >= 0, math.inf), generator)
        full = torch.bincount(groups[groups >= 0], minlength=count) >= SIZE_MARGIN * classes / count
        groups[chosen] = _any_of(-to_groups[chosen].masked_fill(full, math.inf), generator)
    return groups


def _distances(confusion: Tensor, *, separate: bool) -> Tensor:
    """S, (K, K) float64; exact for counts, so that equal distances are equal."""
    counts = confusion.double().clone().fill_diagonal_(0)
    distances = counts if separate else (counts.max() - counts).fill_diagonal_(0)
    return (distances + distances.T) / 2


def _to_groups(distances: Tensor, groups: Tensor, count: int) -> Tensor:
    """d(i, g) of all classes and the first ``count`` groups, (K, count); none of them is empty."""
    members = groups == torch.arange(count)[:, None]
    return (distances @ members.T.to(distances)) / members.sum(1)


def _any_of(values: Tensor, generator: torch.Generator) -> int:
    """The index of the largest value, a random one if several are equal."""
    largest = (values == values.max()).nonzero().flatten()
    return int(largest[torch.randint(len(largest), (), generator=generator)])


def random_groups(classes: int, count: int, generator: torch.Generator) -> Tensor:
    """A random division of the classes into groups whose sizes differ by at most one, (K,) int64."""
    groups = torch.empty(classes, dtype=torch.int64)
    groups[torch.randperm(classes, generator=generator)] = torch.arange(classes) % count
    return groups


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """(K, K) int64: entry (i, j) counts the samples of class i that were predicted as j.

    Args:
        labels: (N,) int64, -1 for samples that do not count.
        predictions: (N,) int64.
        classes: K.
    """
    labelled = labels >= 0
    pairs = labels[labelled] * classes + predictions[labelled]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
