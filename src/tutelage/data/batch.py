"""The batch of one training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, already on the device.

    Attributes:
        inputs: (B, C, H, W) float32, raw pixels in [0, 1], or the inputs of the data's modality; every model contains
            its own normalisation.
        targets: (B,) int64 class numbers, ``-1`` for a sample without a label; or (B, C) float32 soft labels; or
            labels of another kind of ``targets``.
        index: (B,) int64, each sample's ``Split.index``: its position in the split it was loaded from.
        key: (B, 2) int64 on the host: each sample's ``index``, and the number of its view (augmentation). It is the
            key of cached teacher outputs, on the host so that a look-up does not synchronise with the device. ``None``
            for inputs that are not views of stored samples.
        weight: (B,) float32, the weight of each sample: a mean over the batch is that of weight x value. ``None`` means
            1 for each.
        second: (B, C, H, W) float32, the same samples under another view, drawn independently; ``None`` unless a source
            needs it.
        label_weight: (B,) float32, a further weight for losses that read labels, such as that of the sample's class.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor
    key: Tensor | None
    weight: Tensor | None = None
    second: Tensor | None = None
    label_weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: slice) -> Batch:
        """The samples of these rows, as views of the same tensors."""
        tensors = (self.key, self.weight, self.second, self.label_weight)
        optional = (None if tensor is None else tensor[rows] for tensor in tensors)
        return Batch(self.inputs[rows], self.targets[rows], self.index[rows], *optional)


def hard_labels(labels: Tensor) -> Tensor:
    """Class numbers (N,) int64, as they are; of soft labels (N, C) the largest class, ``-1`` if several are largest."""
    if labels.ndim == 1:
        return labels
    largest, classes = labels.max(1, keepdim=True)
    return classes[:, 0].where((labels == largest).sum(1) == 1, UNLABELLED)
