"""A part in two: which samples are held out, or used for testing, class by class."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.split import Split
from tutelage.errors import TutelageError, TutelageWarning

Places = NDArray[Any]

TEST_SHARE = 0.2  # of a data set that has no test part


def stratified_split(labels: Tensor, size: int, seed: int) -> tuple[Places, Places]:
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


def split_off_test(part: Split, share: float | None, name: str) -> tuple[Split, Split, dict[str, Any]]:
    """A training and a test part from the only part of a data set: the same ones every time, class by class.

    Args:
        part: all samples; those without a label stay in the training part, unless none has one.
        share: of each class; ``None`` is 0.2, and a warning says so.
        name: of the data set.

    Returns:
        The training part, the test part, and what the record says of them.

    Raises:
        TutelageError: the share does not lie between 0 and 1, or no class has samples for both parts.
    """
    used = TEST_SHARE if share is None else share
    if not 0 < used < 1:
        raise TutelageError(f"the share of the test part lies between 0 and 1, got {used}")
    strata = part.targets.strata(part.labels)
    labelled = part.targets.labelled(part.labels)
    candidates = labelled.nonzero().squeeze(1) if labelled.any() else torch.arange(len(part))
    size = max(1, round(used * len(candidates)))
    _, held = stratified_split(strata[candidates], size, seed=0) if len(candidates) else ((), ())
    if len(held) == 0:
        raise TutelageError(
            f"{name} has no test part, and the classes of its {len(part)} samples are too small to take one from; "
            "add a test part"
        )
    if share is None:
        warnings.warn(
            TutelageWarning(
                f"{name} has no test part: {len(held)} of its {len(part)} samples, drawn "
                f"{'class by class' if labelled.any() else 'at random'}, are used for testing; --test 0.2 (test=0.2) "
                "sets the share"
            ),
            stacklevel=4,
        )
    chosen = torch.zeros(len(part), dtype=torch.bool)
    chosen[candidates[torch.from_numpy(held)]] = True
    kept, taken = (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)
    return part.subset(kept), part.subset(taken), {"test_from": "train", "test_share": used}
