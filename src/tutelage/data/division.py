"""A part in two: which samples are held out, class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[Any]


def divide(labels: Tensor, size: int, seed: int) -> tuple[Places, Places]:
    """The places that stay and about ``size`` that are held out, both sorted: (N,) labels to (N - M,) and (M,).

    Each class gives its share, and every class keeps a sample, so that fewer are held out where classes are too small.
    Samples without a label (-1) count as a class. Where scikit-learn can stratify, it does.
    """
    array = labels.cpu().numpy()
    kept, held = _stratified(array, size, seed) or _in_turns(array, size, seed)
    return np.sort(kept), np.sort(held)


def _stratified(labels: Places, size: int, seed: int) -> tuple[Places, Places] | None:
    """scikit-learn's stratified split; ``None`` where it has none, or one that takes all samples of a class."""
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2 or not len(classes) <= size <= len(labels) - len(classes):
        return None
    kept, held = train_test_split(np.arange(len(labels)), test_size=size, random_state=seed, stratify=labels)
    return (kept, held) if np.isin(classes[classes >= 0], labels[kept]).all() else None


def _in_turns(labels: Places, size: int, seed: int) -> tuple[Places, Places]:
    """Samples of each class in a drawn order, from which classes give in turns according to their size."""
    generator = np.random.default_rng([seed, *b"hold out"])
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        rank[places] = (np.arange(len(places)) + generator.random()) / len(places)
        rank[places[0]] = -1  # stays
    order = np.argsort(rank, kind="stable")
    size = min(size, int((rank >= 0).sum()))
    return order[: len(order) - size], order[len(order) - size :]
