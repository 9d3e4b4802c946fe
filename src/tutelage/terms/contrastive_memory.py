"""The memory of contrastive representation distillation (CRD): Tian, Krishnan, Isola 2020, arXiv 1910.10699."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutelage.data.batch import UNLABELLED, Batch
from tutelage.errors import TutelageError
from tutelage.models.outputs import Outputs
from tutelage.terms.contrastive import ProjectedEmbeddings, noise_contrast
from tutelage.terms.unit import unit


class MemoryContrast(ProjectedEmbeddings):
    """The contrastive loss of CRD with a memory of the projections of all samples, per sample (B,).

    The projection of each network is compared with the memory of the other: at the sample itself, the positive, and at
    ``negatives`` random samples of other classes, by ``noise_contrast``; the values of both directions are added. A
    score is exp(s . t / tau) / Z, where Z, one for each direction, is M times the mean of exp(s . t / tau) over the
    first batch. After each training step, the memory of a sample becomes momentum x memory + (1 - momentum) x
    projection, scaled to length 1.

    Args:
        numbers: (M,) int64, the ``Batch.index`` of each training sample.
        labels: (M,) int64, their classes. All other samples are negatives of one without a label (-1).
        negatives: K, the number of negatives, drawn with replacement.
        width: of the projections.
        temperature: tau > 0.
        momentum: of the memory, in [0, 1).

    Raises:
        TutelageError: an argument is out of range, or all samples are of one class.
    """

    reads_index = True
    rows: Tensor
    by_class: Tensor
    start: Tensor
    size: Tensor
    memory: Tensor
    constants: Tensor

    def __init__(
        self,
        numbers: Tensor,
        labels: Tensor,
        negatives: int = 1024,
        width: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(width, temperature)
        if negatives < 1 or not 0 <= momentum < 1:
            raise TutelageError(f"CRD needs 1 negative or more and a momentum in [0, 1), got {negatives}, {momentum}")
        self.negatives, self.momentum = negatives, momentum
        numbers, labels = numbers.cpu(), labels.cpu()
        rows = torch.full((int(numbers.max()) + 1,), -1)
        rows[numbers] = torch.arange(len(numbers))
        start, size, by_class = _blocks(labels)
        if int(size.max()) == len(labels):
            raise TutelageError("CRD needs negatives, and all training samples are of one class; use more classes")
        for name, value in {"rows": rows, "by_class": by_class, "start": start, "size": size}.items():
            self.register_buffer(name, value, persistent=False)
        bound = math.sqrt(3 / width)  # the components of a random vector of length 1 on average
        self.register_buffer("memory", torch.empty(2, len(labels), width).uniform_(-bound, bound))
        self.register_buffer("constants", torch.zeros(2))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        """(B,) nats."""
        rows = self.rows[self.required(batch, "the batch, for the numbers of its samples").index]
        projected = self.projected(student, teacher)
        candidates = torch.cat([rows[:, None], self._negatives(rows)], 1)
        loss = torch.zeros(len(rows), device=rows.device)
        constants = []
        for number, values in enumerate(projected):
            compared = self.memory[1 - number][candidates]
            scores = (torch.einsum("bd,bkd->bk", values, compared.to(values)) / self.temperature).exp()
            constant = self.constants[number]
            constant = constant.where(constant > 0, scores.detach().mean().float() * self.memory.shape[1])
            constants.append(constant)
            loss = loss + noise_contrast(scores / constant, self.memory.shape[1])
        if self.training and torch.is_grad_enabled():
            self._update(rows, projected, constants)
        return loss

    def _negatives(self, rows: Tensor) -> Tensor:
        """(B, K) rows of samples of other classes: a uniform number that skips the block of the sample's own class."""
        start, size = self.start[rows, None], self.size[rows, None]
        drawn = torch.rand(len(rows), self.negatives, device=rows.device, dtype=torch.float64)
        places = (drawn * (len(self.by_class) - size)).long()
        return self.by_class[places + size * (places >= start).long()]

    @torch.no_grad()
    def _update(self, rows: Tensor, projected: tuple[Tensor, Tensor], constants: list[Tensor]) -> None:
        self.constants.copy_(torch.stack(constants))
        for memory, values in zip(self.memory, projected, strict=True):
            memory[rows] = unit(self.momentum * memory[rows] + (1 - self.momentum) * values.to(memory))


def _blocks(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each sample where the samples of its class begin in the order by class and how many they are; the order.

    A sample without a label is a class of its own.
    """
    by_class = labels.argsort(stable=True)
    ordered = labels[by_class]
    start = torch.searchsorted(ordered, labels)
    size = torch.searchsorted(ordered, labels, right=True) - start
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels))
    alone = labels == UNLABELLED
    return torch.where(alone, place, start), torch.where(alone, 1, size), by_class
