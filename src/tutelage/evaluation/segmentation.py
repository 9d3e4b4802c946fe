"""Metrics of segmentation from a confusion matrix of pixels, which is gathered batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.ambient import default_settings
from tutelage.data.data import Split
from tutelage.data.loader import evaluation_batches
from tutelage.errors import NonFiniteError, TutelageError
from tutelage.models.modes import eval_mode
from tutelage.models.random_state import fixed_draws
from tutelage.terms.pixels import resized

LOGITS_AT_ONCE = 2**24  # numbers in a batch's logit maps at the resolution of the masks
LARGEST_BATCH = 512


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """What a network predicts for the pixels of a split.

    Attributes:
        confusion: (C, C) int64 on the CPU, the pixels of each true class (row) by predicted class (column); void pixels
            are in none.
        nll: the mean negative log-likelihood of the labelled pixels, in nats; NaN if there are none.
        agreement: the share of all pixels, void ones included, for which another network predicts the same class; NaN
            without one.
        other: the ``confusion`` of the other network.
    """

    confusion: Tensor
    nll: float
    agreement: float = math.nan
    other: Tensor | None = None


@default_settings()
def count_pixels(
    model: nn.Module,
    split: Split,
    classes: int,
    *,
    device: torch.device | str,
    amp: torch.dtype | None = None,
    workers: int = 2,
    other: nn.Module | None = None,
) -> PixelCounts:
    """Predict every pixel of a split, and keep counts only.

    Logit maps are first interpolated bilinearly to the resolution of the masks; the largest logit is the prediction.

    Args:
        model: maps images to logits (B, C, h, w); on ``device`` already.
        split: its labels are masks (N, H, W), -1 for void.
        classes: C.
        device: where to compute.
        amp: the dtype of autocast; ``None`` for the network's own.
        workers: processes that read files.
        other: another network on the same device, to compare with.

    Raises:
        TutelageError: the outputs are no maps of C logits.
        NonFiniteError: a logit is NaN or infinite.
    """
    networks = [model] if other is None else [model, other]
    confusion = [torch.zeros(classes, classes, dtype=torch.int64, device=device) for _ in networks]
    finite: list[Tensor] = []
    nll: list[Tensor] = []
    same: list[Tensor] = []

    def count(masks: Tensor, logits: Sequence[Tensor]) -> None:
        predictions = [values.argmax(1) for values in logits]
        for number, predicted in enumerate(predictions):
            confusion[number] += confusion_of(predicted, masks, classes)
        finite.append(logits[0].isfinite().flatten(1).all(1))
        log_probs = logits[0].log_softmax(1).gather(1, masks.clamp(min=0)[:, None])[:, 0]
        nll.append(-log_probs.where(masks >= 0, 0.0).flatten(1).sum(1))
        same.append((predictions[0] == predictions[-1]).flatten(1).sum(1))

    _for_each_batch(count, networks, split, classes, torch.device(device), amp, workers)
    _check_finite(torch.cat(finite), split)
    labelled = int(confusion[0].sum())
    mean_nll = float(torch.cat(nll).cpu().double().sum()) / labelled if labelled else math.nan
    if other is None:
        return PixelCounts(confusion[0].cpu(), mean_nll)
    agreement = int(torch.cat(same).sum()) / split.labels.numel()
    return PixelCounts(confusion[0].cpu(), mean_nll, agreement, confusion[1].cpu())


@default_settings()
def predicted_masks(
    model: nn.Module, split: Split, classes: int, *, device: torch.device | str, workers: int = 2
) -> Tensor:
    """Predict the class of every pixel of a split: (N, H, W) int16 on the CPU; the rest is as in ``count_pixels``."""
    predicted: list[Tensor] = []
    _for_each_batch(
        lambda masks, logits: predicted.append(logits[0].argmax(1).short().cpu()),
        [model],
        split,
        classes,
        torch.device(device),
        None,
        workers,
    )
    return torch.cat(predicted)


def _for_each_batch(
    see: Callable[[Tensor, Sequence[Tensor]], None],
    networks: Sequence[nn.Module],
    split: Split,
    classes: int,
    device: torch.device,
    amp: torch.dtype | None,
    workers: int,
) -> None:
    """Call ``see`` with the masks (B, H, W) int64 of each batch and each network's logits (B, C, H, W) float32.

    Autocast is for the first network alone: the other one is compared with as it is.
    """
    if len(split) == 0:
        raise TutelageError("there is no image to predict: the split is empty")
    batch_size = max(1, min(LARGEST_BATCH, LOGITS_AT_ONCE // (split.labels[0].numel() * classes)))
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(eval_mode(network))
            stack.enter_context(fixed_draws(network))
        stack.enter_context(torch.inference_mode())
        for batch in evaluation_batches(split, device=device, batch_size=batch_size, workers=workers):
            masks, logits = batch.targets.long(), []
            for network, dtype in zip(networks, (amp, None), strict=False):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    maps = logit_maps(network, batch.inputs, classes)
                logits.append(resized(maps.float(), masks.shape[1:]))
            see(masks, logits)


def logit_maps(model: nn.Module, inputs: Tensor, classes: int) -> Tensor:
    """Compute a network's logit maps for a batch, (B, classes, h, w).

    Raises:
        TutelageError: the output is something else.
    """
    logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[:2] != (len(inputs), classes):
        shape = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TutelageError(
            f"the network returns {shape} for {len(inputs)} images; segmentation needs maps of logits "
            f"({len(inputs)}, {classes}, h, w)"
        )
    return logits


def _check_finite(finite: Tensor, split: Split) -> None:
    """Check once at the end: a check per batch would synchronise with the device."""
    if not bool(finite.all()):
        first = int(split.index[int((~finite).int().argmax())])
        raise NonFiniteError(
            f"the network's logits are NaN or infinite for {int((~finite).sum())} of {len(finite)} images, first for "
            f"image {first}: if training diverged, lower the learning rate; if not, turn mixed precision off"
        )


def confusion_of(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """The pixels of each true class by predicted class: two (..., H, W) int64 to (C, C) int64, without void, -1."""
    pairs = (masks * classes + predicted).where(masks >= 0, classes**2)
    return torch.bincount(pairs.flatten(), minlength=classes**2 + 1)[:-1].view(classes, classes)


def class_iou(confusion: Tensor) -> Tensor:
    """The IoU of each class, TP / (TP + FP + FN): (C, C) counts to (C,) float64.

    NaN for a class that neither the masks nor the predictions for labelled pixels contain.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """The mean of ``class_iou`` over the classes that occur in masks or predictions, (); NaN if none does."""
    return class_iou(confusion).nanmean()


def frequency_weighted_iou(confusion: Tensor) -> Tensor:
    """The mean of ``class_iou`` weighted by the classes' shares of the labelled pixels, (); NaN if there are none."""
    pixels = confusion.sum(1).double()
    return (pixels * class_iou(confusion)).where(pixels > 0, 0.0).sum() / pixels.sum()


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """The share of the labelled pixels that are predicted rightly, (); NaN if there are none."""
    return confusion.diagonal().sum().double() / confusion.sum()


def class_recall(confusion: Tensor) -> Tensor:
    """The share of each class's pixels that are predicted as it: (C, C) to (C,) float64; NaN for no pixels."""
    return confusion.diagonal().double() / confusion.sum(1)


def class_precision(confusion: Tensor) -> Tensor:
    """The share of right ones among the pixels predicted as each class, (C,) float64; NaN for a class without any."""
    return confusion.diagonal().double() / confusion.sum(0)
