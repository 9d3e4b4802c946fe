"""How the batches of an epoch are composed: which samples stand together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.errors import TutelageError

Order = Callable[[Tensor, int, torch.Generator], Tensor]
"""``(labels, batch_size, generator)`` to the places in the split, (steps, batch) int64, of an epoch's batches."""


def shuffled(labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Every sample once, in a new order; a smaller last batch is left out."""
    steps = len(labels) // batch_size
    return torch.randperm(len(labels), generator=generator)[: steps * batch_size].view(steps, -1)


def class_balanced(labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """The same number of every class in every batch, each class in turns of its own.

    There are as many batches as in ``shuffled`` of samples with a label; those of a rare class come back often. Soft
    labels count as their largest class, samples without a label are not shown. The batch is filled to the next lower
    multiple of the number of classes.
    """
    hard = hard_labels(labels)
    classes = torch.unique(hard[hard != UNLABELLED]).tolist()
    each = batch_size // max(len(classes), 1)
    if not each:
        raise TutelageError(
            f"a batch of {batch_size} cannot hold one sample of each of {len(classes)} classes; take larger batches"
        )
    steps = max(int((hard != UNLABELLED).sum()) // (each * len(classes)), 1)
    columns = [_in_turns((hard == label).nonzero().squeeze(1), steps * each, generator) for label in classes]
    # Classes alternate, so that several processes, which take every other column, get all of them too.
    return torch.stack([column.view(steps, each) for column in columns], 2).flatten(1)


@dataclass(frozen=True, slots=True)
class LabelledFirst:
    """So many samples with a label at the beginning of each batch, and others without one behind them.

    An epoch is one pass over the samples without a label; those with one come round in turns of their own. Where all
    samples have a label, or none has, the order is ``shuffled``.

    Attributes:
        labelled: how many of a batch have a label; at least one, and fewer than the batch size.
    """

    labelled: int

    def __call__(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """(steps, batch) places."""
        has_one = labels != UNLABELLED if labels.ndim == 1 else torch.ones(len(labels), dtype=torch.bool)
        if has_one.all() or not has_one.any():
            return shuffled(labels, batch_size, generator)
        without = batch_size - self.labelled
        if self.labelled < 1 or without < 1:
            raise TutelageError(
                f"a batch of {batch_size} cannot hold {self.labelled} samples with a label and others without; "
                "take larger batches or fewer labelled samples in them"
            )
        rest = (~has_one).nonzero().squeeze(1)
        steps = max(len(rest) // without, 1)
        first = _in_turns(has_one.nonzero().squeeze(1), steps * self.labelled, generator)
        second = _in_turns(rest, steps * without, generator)
        return torch.cat([first.view(steps, -1), second.view(steps, -1)], 1)


@dataclass(frozen=True, slots=True)
class PK:
    """P x K batches: P classes, and K samples of each.

    P is as many classes as the batch can hold, ``batch_size // each``, or all of them where there are fewer. Classes
    are drawn in turns, and so are the samples of each class: no class and no sample is twice in a batch, except samples
    of a class that has fewer than K. There are as many batches as in ``shuffled`` of samples with a label. Soft labels
    count as their largest class, samples without a label are left out. The K samples of a class stand side by side.

    Attributes:
        each: K, the samples of a class in a batch; at least 2.
    """

    each: int

    def __call__(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """(steps, P K) places."""
        hard = hard_labels(labels)
        classes = torch.unique(hard[hard != UNLABELLED])
        together = min(batch_size // max(self.each, 1), len(classes))
        if self.each < 2 or together < 2:
            raise TutelageError(
                f"a batch of {batch_size} of {len(classes)} classes cannot hold {self.each} samples of each of two "
                "classes; take at least 2 samples of a class, larger batches or data with more classes"
            )
        steps = max(int((hard != UNLABELLED).sum()) // (together * self.each), 1)
        chosen = _rows(torch.arange(len(classes)), steps, together, generator)
        places = torch.empty(*chosen.shape, self.each, dtype=torch.int64)
        for number, label in enumerate(classes):
            turn = chosen == number
            places[turn] = _rows((hard == label).nonzero().squeeze(1), int(turn.sum()), self.each, generator)
        return places.flatten(1)


def _rows(places: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size) of these places, in turns; none is twice in a row if there are ``size`` of them."""
    whole = len(places) // size * size or len(places)
    turns = -(-count * size // whole)
    orders = [places[torch.randperm(len(places), generator=generator)[:whole]] for _ in range(turns)]
    return torch.cat(orders)[: count * size].view(count, size) if orders else places.new_empty(0, size)


def _in_turns(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of these places: all of them in a new order, then all again in another one, and so on."""
    turns = -(-count // len(places))
    orders = [places[torch.randperm(len(places), generator=generator)] for _ in range(turns)]
    return torch.cat(orders)[:count]
