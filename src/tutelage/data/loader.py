"""Batches in an order that is a function of (seed, epoch), so that a run can go on where it was."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tutelage.data.batch import Batch
from tutelage.data.data import Split
from tutelage.data.images import Images
from tutelage.data.orders import Order, shuffled
from tutelage.data.views import Views
from tutelage.errors import TutelageError


class Batches:
    """The training batches of a split.

    The order and the views of epoch ``e`` depend on the seed and ``e`` alone: students of one seed see the same
    batches whatever their method, and a resumed run needs no generator's state. Pixels in memory live on the device
    as uint8 and are cropped and flipped there, a batch at a time; files stream through worker processes. A last
    batch smaller than the others is left out (each sample is as likely to be in it), unless it is the only one.

    Args:
        split: the split to go through.
        batch_size: samples a step, over all processes together.
        views: the augmentation.
        seed: of the order and the views.
        device: where the batches are wanted.
        rank, world: which of how many processes this is; each takes its share of every batch.
        workers: processes that read files; of no use for pixels in memory.
        layout: the memory format of the inputs.
        order: how an epoch's batches are composed.
        second: whether each batch brings its samples under a second view, too.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        views: Views | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        layout: torch.memory_format = torch.contiguous_format,
        order: Order = shuffled,
        second: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise TutelageError(f"the batch size must be a multiple of the {world} processes, got {batch_size}")
        self.batch_size = min(batch_size, len(split) - len(split) % world)
        if self.batch_size == 0:
            raise TutelageError(f"{len(split)} training samples are too few for {world} processes")
        self.views = views or split.modality.unaugmented
        self.seed, self.device = seed, torch.device(device)
        self.rank, self.world, self.workers, self.layout = rank, world, workers, layout
        self.order, self.second = order, second
        self._split = split
        self._index, self._numbers = split.index.to(self.device), split.index.cpu()
        self._labels = split.labels.to(self.device)
        self._images = split.inputs.to(self.device) if isinstance(split.inputs, Tensor) else split.inputs
        self._drawn: tuple[int, list[Tensor], list[Tensor]] | None = None

    def __len__(self) -> int:
        return self._steps

    @cached_property
    def _steps(self) -> int:
        return len(self.places(0)[0])

    def places(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """An epoch's samples, as places in the split, and their first and second views: (steps, batch) int64 on CPU."""
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch))
        order = self.order(self._split.labels, self.batch_size, generator)
        views = torch.randint(self.views.count, (max(order.numel(), len(self._split)),), generator=generator)
        again = torch.randint(self.views.count, (order.numel(),), generator=generator)
        return order, views[: order.numel()].view_as(order), again.view_as(order)

    def indices(self, epoch: int, step: int) -> Tensor:
        """The ``index`` of every sample in this batch, over all processes."""
        return self._split.index[self.places(epoch)[0][step]]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of every batch of an epoch, in order."""
        parts, moved = self._draw(epoch)
        for step, images in enumerate(self._pixels(moved[0])):
            yield self._batch(_Drawn.of(parts, step), _Drawn.of(moved, step), images)

    def at(self, number: int) -> Batch:
        """This process's share of the batch of this number, counted over all epochs from the first: an endless stream.

        For a second stream beside the one that makes the epochs. Files are read here and now.
        """
        epoch, step = divmod(number, len(self))
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, *self._draw(epoch)
        drawn, moved = (_Drawn.of(parts, step) for parts in self._drawn[1:])
        images = self._images[(moved if isinstance(self._images, Tensor) else drawn).places].to(self.device)
        return self._batch(drawn, moved, images)

    def _draw(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        """This process's share of an epoch's draws, here and on the device: moved at once, for a move is a wait."""
        parts = [part[:, self.rank :: self.world] for part in self.places(epoch)]
        return parts, [part.to(self.device) for part in parts]

    def _batch(self, drawn: _Drawn, moved: _Drawn, images: Tensor) -> Batch:
        return Batch(
            inputs=self._ready(images, moved.views),
            targets=self._split.targets.transformed(self._labels[moved.places], self.views, moved.views),
            index=self._index[moved.places],
            key=torch.stack([self._numbers[drawn.places], drawn.views], 1),
            second=self._ready(images, moved.again) if self.second else None,
        )

    def _ready(self, stored: Tensor, view: Tensor) -> Tensor:
        """Stored samples under these views, as networks take them."""
        modality = self._split.modality
        return modality.to_input(modality.arrange(self.views(stored, view)), self.layout)

    def _pixels(self, order: Tensor) -> Iterator[Tensor]:
        if isinstance(self._images, Tensor):
            yield from (self._images[places] for places in order)
        else:
            yield from stream(self._images, order.cpu(), self.device, self.workers)


class _Drawn(NamedTuple):
    """What is drawn for a batch: places in the split, and their first and second views, (B,) int64 each."""

    places: Tensor
    views: Tensor
    again: Tensor

    @classmethod
    def of(cls, parts: Sequence[Tensor], step: int) -> _Drawn:
        places, views, again = (part[step] for part in parts)
        return cls(places, views, again)


def stream(images: Images, order: Tensor, device: torch.device, workers: int) -> Iterator[Tensor]:
    """Read the images at each row of ``order`` ahead of time in worker processes: (B, H, W, C) uint8 each."""
    pin = device.type == "cuda"
    workers = min(workers, os.cpu_count() or 1)  # more only wait for each other, and torch warns of it
    if multiprocessing.current_process().daemon:  # a worker of a pool, which may have no processes of its own
        workers = 0
    loader: DataLoader[Tensor | TutelageError] = DataLoader(
        # A generator of its own: a DataLoader without one draws from the global one, and evaluating must not.
        _Rows(images, order),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, TutelageError):
            raise batch
        yield batch.to(device, non_blocking=True)


class _Rows(Dataset[Tensor | TutelageError]):
    """Batches of files as items, so that a worker reads a whole batch.

    What the user can mend comes back as an item: raised in a worker it would arrive wrapped in the worker's traceback.
    """

    def __init__(self, images: Images, order: Tensor) -> None:
        self.images, self.order = images, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: int) -> Tensor | TutelageError:
        try:
            return self.images[self.order[row]]
        except TutelageError as error:
            return error


def evaluation_batches(
    split: Split, *, device: torch.device | str = "cpu", batch_size: int = 512, workers: int = 2
) -> Iterator[Batch]:
    """Every sample of a split once, in order and as it is: for evaluation."""
    device = torch.device(device)
    chunks = torch.split(torch.arange(len(split)), batch_size)
    if isinstance(split.inputs, Tensor):
        pixels = (split.inputs[places].to(device) for places in chunks)
    else:
        images = split.inputs
        pixels = (
            batch
            for rows in (
                chunks[:-1],
                chunks[-1:],
            )  # the last one may be smaller, and rows must be of one length
            if rows
            for batch in stream(images, torch.stack(rows), device, workers)
        )
    for places, stored in zip(chunks, pixels, strict=True):
        yield Batch(
            inputs=split.modality.to_input(split.modality.arrange(stored)),
            targets=split.labels[places].to(device),
            index=split.index[places].to(device),
            key=None,
        )


def mix_seeds(*parts: int) -> int:
    """One seed from several numbers, the same on every machine, without the collisions that adding them has."""
    value = 0x9E3779B97F4A7C15
    for part in parts:
        value = (value ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 29
    return value & 0x7FFFFFFFFFFFFFFF
