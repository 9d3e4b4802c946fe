"""What a network is shown in one step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, already on the device.

    Attributes:
        inputs: (B, C, H, W) float32, raw pixels in [0, 1], or what the data's modality gives; every model carries its
            own normalisation.
        targets: (B,) int64 class numbers, ``-1`` where a sample has no label; or (B, C) float32 soft labels; or what
            the data's ``targets`` say.
        index: (B,) int64, each sample's place in the training (or test) part of its data set.
        key: (B, 2) int64 on the host: each sample's ``index``, and which of the data set's enumerable augmentations it
            was given. What is kept about an image is found by it, without waiting for the device. ``None`` for inputs
            that are none of them.
        weight: (B,) float32, how much each sample counts: a mean over the batch is that of weight x value. ``None`` is
            1 for each.
        second: (B, C, H, W) float32, the same samples under another view, drawn independently; ``None`` unless a source
            asks for it.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor
    key: Tensor | None
    weight: Tensor | None = None
    second: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)


def hard_labels(labels: Tensor) -> Tensor:
    """Class numbers (N,) int64, as they are; of soft labels (N, C) the largest class."""
    return labels if labels.ndim == 1 else labels.argmax(1)
