"""Soft labels for each sample that change after each epoch, and the update rule that trains on them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tutelage.data.data import Split
from tutelage.data.loader import mix_seeds
from tutelage.data.per_sample import PerSample
from tutelage.models.outputs import at_least_float32
from tutelage.training.processes import gathered
from tutelage.training.updates import Step


class SoftLabels(nn.Module):
    """An update rule of one learner: its batches get stored soft labels, which change at the end of each epoch.

    The predictions for the current batch are recorded. The labels of all processes are the same.

    Args:
        split: the training split.
        labels: the initial soft labels, (N, C).
        steps: steps per epoch.

    Attributes:
        labels: the soft labels, (N, C); 0 for a sample without a label.
    """

    def __init__(self, split: Split, labels: Tensor, steps: int) -> None:
        super().__init__()
        self.labels, self.steps = PerSample(split, labels), steps

    def forward(self, step: Step) -> None:
        """Do the step."""
        (learner,) = step.learners
        epoch, number = divmod(step.number, self.steps)
        self.to(step.batch.index.device, non_blocking=True)
        step.batch = replace(step.batch, targets=self.labels.values[self.labels.rows(step.batch.index)])
        outputs = step.forward(learner)
        step.update(learner, step.loss(learner))
        with torch.no_grad():
            predictions = gathered(at_least_float32(outputs["logits"].detach()).softmax(1))
            self.record(self.labels.rows(gathered(step.batch.index)), predictions, epoch)
            if number + 1 == self.steps:
                self.end_epoch(epoch)

    def record(self, rows: Tensor, predictions: Tensor, epoch: int) -> None:
        """Store the predictions (B, C) for rows of the split in an epoch, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} must define record(rows, predictions, epoch)")

    def end_epoch(self, epoch: int) -> None:
        """Change the labels after an epoch, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} must define end_epoch(epoch)")


class AveragedLabels(SoftLabels):
    """Each label becomes the mean of the sample's predictions in the last epochs.

    A sample that was in no batch of an epoch has no prediction in it, and one without any keeps its label.

    Args:
        split, labels, steps: as in ``SoftLabels``.
        start: the number of epochs after which labels begin to change.
        window: K, the number of epochs.

    Attributes:
        ring: (N, K, C), the predictions of the last K epochs; 0 where there is none.
    """

    ring: Tensor

    def __init__(self, split: Split, labels: Tensor, steps: int, *, start: int, window: int) -> None:
        super().__init__(split, labels, steps)
        self.start = start
        self.register_buffer("ring", labels.new_zeros(len(labels), window, labels.shape[1]))

    def record(self, rows: Tensor, predictions: Tensor, epoch: int) -> None:
        """Store the predictions in the slot of the epoch."""
        self.ring[rows, epoch % self.ring.shape[1]] = predictions.to(self.ring)

    def end_epoch(self, epoch: int) -> None:
        """Average, from the start on, and clear the slot of the next epoch."""
        if epoch + 1 >= self.start:
            total = self.ring.sum(1)
            count = total.sum(1, keepdim=True)  # each prediction sums to 1
            self.labels.values.copy_(torch.where(count > 0.5, total / count.clamp_min(1), self.labels.values))
        self.ring[:, (epoch + 1) % self.ring.shape[1]] = 0


class PseudoLabels(SoftLabels):
    """Labels of the unlabelled samples become their latest predictions, and some of them the uniform distribution.

    Args:
        split, labels, steps: as in ``SoftLabels``.
        unlabelled: (N,) bool, whose labels change.
        uniform_share: the share of them, rounded down, with the label 1 / C in the next epoch, drawn in each epoch.
        seed: of the draws.

    Attributes:
        predictions: (N, C), the latest ones; at first the labels.
    """

    predictions: Tensor
    unlabelled: Tensor

    def __init__(
        self, split: Split, labels: Tensor, steps: int, *, unlabelled: Tensor, uniform_share: float, seed: int
    ) -> None:
        super().__init__(split, labels, steps)
        self.uniform_share, self.seed = uniform_share, seed
        self.register_buffer("predictions", labels.clone())
        self.register_buffer("unlabelled", unlabelled.nonzero().squeeze(1))

    def record(self, rows: Tensor, predictions: Tensor, epoch: int) -> None:
        """Replace the predictions."""
        self.predictions[rows] = predictions.to(self.predictions)

    def end_epoch(self, epoch: int) -> None:
        """Renew the labels of the unlabelled samples."""
        size = len(self.unlabelled)
        self.labels.values[self.unlabelled] = self.predictions[self.unlabelled]
        order = torch.randperm(size, generator=torch.Generator().manual_seed(mix_seeds(self.seed, epoch)))
        chosen = order[: int(self.uniform_share * size)].to(self.unlabelled.device, non_blocking=True)
        self.labels.values[self.unlabelled[chosen]] = 1 / self.labels.values.shape[1]
