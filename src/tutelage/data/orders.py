"""Orders: which samples form the batches of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, hard_labels
from tutelage.errors import TutelageError

Order = Callable[[Tensor, int, torch.Generator], Tensor]
"""``(labels, batch_size, generator)`` to an epoch's (steps, batch) int64 indices."""


def shuffled(labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Every sample once, in random order; a smaller last batch is left out."""
    steps = len(labels) // batch_size
    return torch.randperm(len(labels), generator=generator)[: steps * batch_size].view(steps, -1)


def class_balanced(labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """As many samples of each class in each batch; the samples of a class are shuffled and repeated separately.

    An epoch has as many batches as ``shuffled`` has for the labelled samples, so samples of rare classes are repeated.
    Soft labels count as their largest class; samples without a label are left out. The batch size is rounded down to a
    multiple of the number of classes.
    """
    hard = hard_labels(labels)
    classes = torch.unique(hard[hard != UNLABELLED]).tolist()
    per_class = batch_size // max(len(classes), 1)
    if not per_class:
        raise TutelageError(
            f"a batch of {batch_size} cannot hold one sample of each of {len(classes)} classes; take larger batches"
        )
    steps = max(int((hard != UNLABELLED).sum()) // (per_class * len(classes)), 1)
    columns = [_repeated((hard == label).nonzero().squeeze(1), steps * per_class, generator) for label in classes]
    # Classes alternate, so that several processes, which take every other column, get all of them too.
    return torch.stack([column.view(steps, per_class) for column in columns], 2).flatten(1)


@dataclass(frozen=True, slots=True)
class FixedSteps:
    """The same number of batches in an epoch, whatever the number of samples: all are shuffled, again and again.

    No sample is left out. A sample is twice in a batch only where two passes over the samples meet.

    Attributes:
        steps: batches per epoch.
    """

    steps: int

    def __call__(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """(steps, batch) indices."""
        return _repeated(torch.arange(len(labels)), self.steps * batch_size, generator).view(self.steps, -1)


@dataclass(frozen=True, slots=True)
class LabelledFirst:
    """Labelled samples first in each batch, followed by unlabelled ones.

    An epoch is one pass over the unlabelled samples; labelled samples are shuffled and repeated separately. If all
    samples have a label, or none has, the order is ``shuffled``.

    Attributes:
        labelled: labelled samples per batch; at least one, and fewer than the batch size.
    """

    labelled: int

    def __call__(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """(steps, batch) indices."""
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
        first = _repeated(has_one.nonzero().squeeze(1), steps * self.labelled, generator)
        second = _repeated(rest, steps * without, generator)
        return torch.cat([first.view(steps, -1), second.view(steps, -1)], 1)


@dataclass(frozen=True, slots=True)
class PK:
    """P x K batches: P classes, and K samples of each.

    P is as many classes as the batch can hold, ``batch_size // per_class``, or all classes if there are fewer. Classes
    are shuffled and repeated, and so are the samples of each class: no class and no sample is twice in a batch, except
    samples of a class with fewer than K. An epoch has as many batches as ``shuffled`` has for the labelled samples.
    Soft labels count as their largest class; unlabelled samples are left out. The K samples of a class are adjacent.

    Attributes:
        per_class: K, the samples of a class in a batch; at least 2.
    """

    per_class: int

    def __call__(self, labels: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """(steps, P K) indices."""
        hard = hard_labels(labels)
        classes = torch.unique(hard[hard != UNLABELLED])
        together = min(batch_size // max(self.per_class, 1), len(classes))
        if self.per_class < 2 or together < 2:
            raise TutelageError(
                f"a batch of {batch_size} of {len(classes)} classes cannot hold {self.per_class} samples of each of "
                "two classes; take at least 2 samples of a class, larger batches or data with more classes"
            )
        steps = max(int((hard != UNLABELLED).sum()) // (together * self.per_class), 1)
        classes_of_batches = _rows(torch.arange(len(classes)), steps, together, generator)
        indices = torch.empty(*classes_of_batches.shape, self.per_class, dtype=torch.int64)
        for number, label in enumerate(classes):
            in_class = classes_of_batches == number
            indices[in_class] = _rows(
                (hard == label).nonzero().squeeze(1), int(in_class.sum()), self.per_class, generator
            )
        return indices.flatten(1)


def _rows(indices: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size) repeatedly shuffled indices; the indices of a row are distinct if there are at least ``size``."""
    whole = len(indices) // size * size or len(indices)
    repeats = -(-count * size // whole)
    orders = [indices[torch.randperm(len(indices), generator=generator)[:whole]] for _ in range(repeats)]
    return torch.cat(orders)[: count * size].view(count, size) if orders else indices.new_empty(0, size)


def _repeated(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` indices: all in random order, then all in another random order, and so on."""
    repeats = -(-count // len(indices))
    orders = [indices[torch.randperm(len(indices), generator=generator)] for _ in range(repeats)]
    return torch.cat(orders)[:count]
