"""Batches whose order is a function of (seed, epoch), so that a run can be resumed at any step."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tutelage.cores import cores
from tutelage.data.batch import Batch
from tutelage.data.data import Split
from tutelage.data.images import CroppableImages, Images
from tutelage.data.orders import Order, shuffled
from tutelage.data.views import CroppingViews, JoiningViews, Views
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
        device: the device of the batches.
        rank, world: this process and the number of processes; each takes its share of every batch.
        workers: processes that read files; not used for pixels in memory.
        layout: the memory format of the inputs.
        order: how an epoch's batches are composed.
        second: whether each batch also has its samples under a second view.
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
        self._crops: tuple[CroppableImages, CroppingViews] | None = None  # of images that are cropped while read
        if isinstance(self._images, CroppableImages) and isinstance(self.views, CroppingViews):
            self._crops = self._images, self.views
        self._joining = self.views if isinstance(self.views, JoiningViews) else None
        if self._crops and split.targets.spatial:
            raise TutelageError(
                f"{split.targets.noun} cannot move with random boxes of whole images; use --augment none or crop, or "
                "images of one size in memory"
            )
        self._epoch_plan: tuple[int, list[Tensor], list[Tensor]] | None = None

    def __len__(self) -> int:
        return self._steps

    @cached_property
    def _steps(self) -> int:
        return len(self.plan(0)[0])

    def plan(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """An epoch's samples (indices into the split), first and second views: (steps, batch) int64 on CPU."""
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch))
        order = self.order(self._split.labels, self.batch_size, generator)
        views = torch.randint(self.views.count, (max(order.numel(), len(self._split)),), generator=generator)
        second_views = torch.randint(self.views.count, (order.numel(),), generator=generator)
        return order, views[: order.numel()].view_as(order), second_views.view_as(order)

    def indices(self, epoch: int, step: int) -> Tensor:
        """The ``index`` of every sample in this batch, over all processes."""
        return self._split.index[self.plan(epoch)[0][step]]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's share of every batch of an epoch, in order."""
        plan, device_plan = self._plan_epoch(epoch)
        for step, stored in enumerate(self._stored(plan, device_plan)):
            yield self._batch(_BatchPlan.of(plan, step), _BatchPlan.of(device_plan, step), stored)

    def at(self, number: int) -> Batch:
        """This process's share of batch ``number``, counted over all epochs from the first.

        For a second, endless stream of batches. Files are read in this process.
        """
        epoch, step = divmod(number, len(self))
        if self._epoch_plan is None or self._epoch_plan[0] != epoch:
            self._epoch_plan = epoch, *self._plan_epoch(epoch)
        plan, device_plan = self._epoch_plan[1:]
        row = slice(step, step + 1)
        (stored,) = self._stored([tensor[row] for tensor in plan], [tensor[row] for tensor in device_plan], workers=0)
        return self._batch(_BatchPlan.of(plan, step), _BatchPlan.of(device_plan, step), stored)

    def _plan_epoch(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        """This process's share of an epoch's plan, on the host and, moved as a whole, on the device.

        Views that join several samples add their rows, (steps, batch, K) for the first and for the second views.
        """
        plan = [tensor[:, self.rank :: self.world] for tensor in self.plan(epoch)]
        if self._joining:
            order, *both_views = plan
            index, labels = self._numbers[order], self._split.labels.cpu()
            plan += [self._joining.members(labels, order, view, index) for view in both_views]
        return plan, [tensor.to(self.device) for tensor in plan]

    def _batch(self, plan: _BatchPlan, device_plan: _BatchPlan, stored: tuple[Tensor, Tensor]) -> Batch:
        index = self._index[device_plan.indices]
        inputs, targets = self._ready(stored[0], device_plan.views, index, device_plan.indices, device_plan.members)
        second = None
        if self.second:
            views, members = device_plan.second_views, device_plan.second_members
            second, _ = self._ready(stored[1], views, index, device_plan.indices, members)
        return Batch(inputs, targets, index, torch.stack([self._numbers[plan.indices], plan.views], 1), second=second)

    def _ready(
        self, stored: Tensor, view: Tensor, index: Tensor, rows: Tensor, members: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Stored samples under these views, as networks take them, and their labels."""
        modality = self._split.modality
        if self._joining and members is not None:
            arranged, targets = self._joining.joined(stored, self._labels[members], view, index)
        else:
            augment = self._crops[1].after_crop if self._crops else self.views
            arranged = modality.arrange(augment(stored, view, index))
            targets = self._split.labels_under(self._labels[rows], self.views, view, index)
        return modality.to_input(arranged, self.layout), targets

    def _stored(
        self, plan: Sequence[Tensor], device_plan: Sequence[Tensor], workers: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The stored samples of each batch of a plan, for the first and for the second views."""
        images = self._images
        workers = self.workers if workers is None else workers
        order, *both_views = plan[:3]
        if self._joining:
            used = slice(3, 5 if self.second else 4)
            rows = torch.cat([*(device_plan if isinstance(images, Tensor) else plan)[used]], 1)
            for batch in stored_rows(images, rows, self.device, workers):
                yield batch[: order.shape[1]], batch[-order.shape[1] :]
            return
        if isinstance(images, Tensor):
            batches: Iterator[Tensor] = (images[indices] for indices in device_plan[0])
        elif self._crops:
            images, views = self._crops
            numbers = both_views if self.second else both_views[:1]
            boxes = [_boxes(images, views, order, view, self._numbers[order]) for view in numbers]
            repeated = torch.cat([order] * len(boxes), 1)
            for batch in stream(images, repeated, self.device, workers, boxes=torch.cat(boxes, 1)):
                yield batch[: order.shape[1]], batch[-order.shape[1] :]
            return
        else:
            batches = stream(images, order, self.device, workers)
        yield from ((batch, batch) for batch in batches)


class _BatchPlan(NamedTuple):
    """What a batch is made of: indices into the split, and first and second views, (B,) int64 each.

    Of views that join several samples also the indices of these, (B, K) int64.
    """

    indices: Tensor
    views: Tensor
    second_views: Tensor
    members: Tensor | None = None
    second_members: Tensor | None = None

    @classmethod
    def of(cls, plan: Sequence[Tensor], step: int) -> _BatchPlan:
        return cls(*(tensor[step] for tensor in plan))


def _boxes(images: CroppableImages, views: CroppingViews, order: Tensor, view: Tensor, index: Tensor) -> Tensor:
    """The boxes of an epoch's images: (steps, batch) int64 each to (steps, batch, 5)."""
    boxes = views.boxes(images.sizes[order.flatten()], view.flatten(), index.flatten())
    return boxes.view(*order.shape, -1)


def stream(
    images: Images, order: Tensor, device: torch.device, workers: int, *, boxes: Tensor | None = None
) -> Iterator[Tensor]:
    """Prefetch the images of each row of ``order`` in worker processes: (B, H, W, C) uint8 each.

    Args:
        images: the images.
        order: (steps, batch) int64, indices.
        device: where the batches go.
        workers: how many processes; 0 for this one.
        boxes: (steps, batch, 5) int64, which part of each image; only of ``CroppableImages``.
    """
    pin = device.type == "cuda"
    workers = min(workers, cores())  # more would wait for each other, and torch warns
    if multiprocessing.current_process().daemon:  # a daemon may not start processes
        workers = 0
    loader: DataLoader[Tensor | TutelageError] = DataLoader(
        # Its own generator: by default a DataLoader draws from the global one, which evaluation must not change.
        _Rows(images, order, boxes),
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

    A ``TutelageError`` is returned as an item: raised in a worker it would be wrapped in the worker's traceback.
    """

    def __init__(self, images: Images, order: Tensor, boxes: Tensor | None) -> None:
        self.images, self.order, self.boxes = images, order, boxes

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: int) -> Tensor | TutelageError:
        try:
            if self.boxes is not None and isinstance(self.images, CroppableImages):
                return self.images.crops(self.order[row], self.boxes[row])
            return self.images[self.order[row]]
        except TutelageError as error:
            return error


def stored_rows(images: Tensor | Images, rows: Tensor, device: torch.device, workers: int) -> Iterator[Tensor]:
    """The stored samples of each row of a plan of several samples each: (steps, B, K) int64 to (B, K, ...)."""
    if isinstance(images, Tensor):
        yield from (images[indices].to(device) for indices in rows)
        return
    for batch in stream(images, rows.flatten(1), device, workers):
        yield batch.view(*rows.shape[1:], *batch.shape[1:])


def evaluation_batches(
    split: Split, *, device: torch.device | str = "cpu", batch_size: int = 512, workers: int = 2
) -> Iterator[Batch]:
    """Every sample of a split once, in order and without augmentation."""
    device = torch.device(device)
    chunks = torch.split(torch.arange(len(split)), batch_size)
    if isinstance(split.modality.unaugmented, JoiningViews):
        yield from _joined_batches(split, split.modality.unaugmented, chunks, device, workers)
        return
    if isinstance(split.inputs, Tensor):
        pixels = (split.inputs[indices].to(device) for indices in chunks)
    else:
        images = split.inputs
        parts = filter(None, (chunks[:-1], chunks[-1:]))  # the last chunk may be smaller, and those stacked are equal
        pixels = (batch for part in parts for batch in stream(images, torch.stack(part), device, workers))
    for indices, stored in zip(chunks, pixels, strict=True):
        yield Batch(
            inputs=split.modality.to_input(split.modality.arrange(stored)),
            targets=split.labels[indices].to(device),
            index=split.index[indices].to(device),
            key=None,
        )


def _joined_batches(
    split: Split, views: JoiningViews, chunks: tuple[Tensor, ...], device: torch.device, workers: int
) -> Iterator[Batch]:
    """Every sample of a split once, in order, under the view that joins unchanged samples."""
    index, labels = split.index.cpu(), split.labels.cpu()
    views_of_rows = torch.full_like(index, views.identity)
    members = views.members(labels, torch.arange(len(split)), views_of_rows, index)
    parts = filter(None, (chunks[:-1], chunks[-1:]))  # the last chunk may be smaller, and those stacked are equal
    batches = (
        stored for part in parts for stored in stored_rows(split.inputs, members[torch.stack(part)], device, workers)
    )
    for rows, stored in zip(chunks, batches, strict=True):
        view, numbers = views_of_rows[rows].to(device), index[rows].to(device)
        inputs, targets = views.joined(stored, labels[members[rows]].to(device), view, numbers)
        yield Batch(inputs=split.modality.to_input(inputs), targets=targets, index=numbers, key=None)


def mix_seeds(*numbers: int) -> int:
    """A seed from several numbers, the same on every machine; sums of the numbers would collide."""
    value = 0x9E3779B97F4A7C15
    for number in numbers:
        value = (value ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 29
    return value & 0x7FFFFFFFFFFFFFFF
