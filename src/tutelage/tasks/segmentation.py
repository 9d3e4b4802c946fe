"""The segmentation task: a class for each pixel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.data.arrays import VOID
from tutelage.data.batch import UNLABELLED
from tutelage.data.data import Data, Split
from tutelage.data.inputs.images import of_whole_image
from tutelage.data.targets import Masks
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.evaluation.json_numbers import json_number, json_numbers
from tutelage.evaluation.segmentation import (
    PixelCounts,
    class_iou,
    class_precision,
    class_recall,
    confusion_of,
    count_pixels,
    frequency_weighted_iou,
    mean_iou,
    pixel_accuracy,
    predicted_masks,
)
from tutelage.models.ensemble import Ensemble
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks._overlays import palette, side_by_side, swatches
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import Prediction, Request, png
from tutelage.tasks.task import Compute, Task
from tutelage.terms.pixels import PixelCrossEntropy, PixelSoftTargets
from tutelage.terms.term import Term

LARGEST_CONFUSION = 100  # classes; a larger matrix would dominate result.json
DRAWN = 6  # of the worst images, and of those around the median
VOID_COLOUR = (224, 224, 192)  # as in PASCAL VOC
MOST_JUDGED = 1024  # images that are searched for them


class Segmentation(Task):
    """A class for each pixel: the largest of the logits (B, C, h, w), which are interpolated to the size of the masks.

    The IoU of a class is TP / (TP + FP + FN) over the pixels of the whole split that are not void. The mean IoU is the
    mean over the classes that occur in the masks or in the predictions for these pixels; others have no IoU.
    """

    loss_name: ClassVar[str] = "ce"
    counted: ClassVar[str] = "pixels"
    prediction_suffix: ClassVar[str] = ".png"
    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "mean_iou": Metric("mean IoU", "higher", percent=True),
            "pixel_accuracy": Metric("pixel accuracy", "higher", percent=True),
            "frequency_weighted_iou": Metric("IoU weighted by frequency", "higher", percent=True),
            "per_class_iou": Curve("IoU of each class"),
            "per_class_accuracy": Curve("accuracy of each class's pixels"),
            "per_class_precision": Curve("precision of each class's pixels"),
            "confusion": Curve("pixels by true and predicted class"),
            "nll": Metric("negative log-likelihood per pixel", "lower"),
            "agreement": Metric("pixels predicted as by the teacher", "higher", percent=True),
            "teacher_mean_iou": Metric("the teacher's mean IoU", None, percent=True),
        }
    )

    class_metrics: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"recall": "per_class_accuracy", "precision": "per_class_precision", "IoU": "per_class_iou"}
    )
    class_note: ClassVar[str] = (
        "Recall: the share of a class's pixels that are predicted as it. Precision: the share of its predictions that "
        "are right. IoU: the right predictions as a share of the pixels that are of the class or predicted as it."
    )

    training_metric_note: ClassVar[str] = (
        "The mean IoU is not a mean over images, so it is not shown for training batches."
    )

    def label_loss(self) -> Term:
        """Cross-entropy of each pixel that is not void: the mean over an image's pixels, then over images."""
        return PixelCrossEntropy()

    def soft_targets(self, temperature: float) -> Term:
        """Hinton's loss of each pixel, averaged over all pixels."""
        return PixelSoftTargets(temperature)

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require a logit map for each class; its resolution may differ from that of the masks."""
        logits = outputs.logits
        if logits is not None and (logits.ndim != 4 or logits.shape[1] != data.num_classes):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for the masks of {data.name}; segmentation "
                f"needs a map of logits for each of {data.num_classes} classes, (B, {data.num_classes}, h, w), as the "
                "networks fpn-10 and fpn-18 return"
            )

    def check_labels(self, data: Data) -> None:
        """Require training pixels of two classes; warn of classes without any."""
        counts = data.targets.counts(data.train.labels, data.classes)
        present = sum(count > 0 for count in counts)
        if present < 2:
            raise TutelageError(
                f"the training masks of {data.name} have pixels of {present} class, so that a constant prediction is "
                "always right; give masks with 2 classes or more (255 means void)"
            )
        if empty := [name for name, count in zip(data.classes, counts, strict=True) if not count]:
            names = ", ".join(repr(name) for name in empty[:5]) + (", …" if len(empty) > 5 else "")
            warnings.warn(
                f"{len(empty)} of the {len(counts)} classes of {data.name} have no training pixel ({names})",
                TutelageWarning,
                stacklevel=2,
            )

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The mean IoU."""
        return float(mean_iou(_counts(model, split, data, compute).confusion))

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute all metrics; the confusion matrix, in pixels, for up to 100 classes."""
        counts = _counts(model, split, data, compute, teacher)
        confusion = counts.confusion
        result: dict[str, Any] = {
            "samples": len(split),
            "mean_iou": json_number(mean_iou(confusion)),
            "pixel_accuracy": json_number(pixel_accuracy(confusion)),
            "frequency_weighted_iou": json_number(frequency_weighted_iou(confusion)),
            "per_class_iou": _by_class(data, class_iou(confusion)),
            "per_class_accuracy": _by_class(data, class_recall(confusion)),
            "per_class_precision": _by_class(data, class_precision(confusion)),
            "nll": json_number(counts.nll),
        }
        if data.num_classes <= LARGEST_CONFUSION:
            result["confusion"] = confusion.tolist()
        if counts.other is not None:
            result["agreement"] = json_number(counts.agreement)
            result["teacher_mean_iou"] = json_number(mean_iou(counts.other))
        return result

    def drawings(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> Sequence[Drawing]:
        """The worst images, then some around the median, by the mean IoU within an image: image, labels, prediction.

        Of a larger split, 1,024 evenly spaced images are judged. The last drawing shows the colours of the classes.
        """
        rows = torch.arange(min(len(split), MOST_JUDGED)) * len(split) // min(len(split), MOST_JUDGED)
        rows = rows[split.targets.labelled(split.labels[rows]).cpu()]
        if not len(rows):
            return ()
        judged = split.subset(rows)
        predicted = predicted_masks(model, judged, data.num_classes, device=compute.device, workers=compute.workers)
        masks, colours = judged.labels.cpu(), palette(data.num_classes)
        ious = torch.stack(
            [
                mean_iou(confusion_of(*pair, data.num_classes))
                for pair in zip(predicted.long(), masks.long(), strict=True)
            ]
        )
        order = ious.argsort()
        middle = max(DRAWN, (len(order) - DRAWN) // 2)
        chosen = [("worst", row) for row in order[:DRAWN].tolist()]
        chosen += [("typical", row) for row in order[middle : middle + DRAWN].tolist()]
        drawings = [
            Drawing(
                side_by_side(judged.inputs[torch.tensor([row])][0].cpu(), [masks[row], predicted[row]], colours),
                f"{kind}, IoU {ious[row]:.1%}: image, labels, prediction. {_file(data, split, int(judged.index[row]))}",
            )
            for kind, row in chosen
        ]
        drawn = torch.cat([mask[row].flatten() for _, row in chosen for mask in (masks, predicted)])
        present = [number for number in range(data.num_classes) if bool((drawn == number).any())]
        names = ", ".join(data.classes[number] for number in present)
        return [*drawings, Drawing(swatches(colours[present]), f"the colours, from left to right: {names}")]

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """A mask of the size of each image as a PNG of class numbers, and the share of each class in its pixels.

        The pixels that the network does not see are void, 255.
        """
        inputs, count = request.inputs, len(request.classes)
        void = torch.full((len(inputs), *inputs.split.inputs.shape[1:3]), UNLABELLED, dtype=torch.int16)
        split = Split.of(inputs.split.inputs, void, targets=Masks())
        masks = predicted_masks(request.model, split, count, device=request.device, workers=request.workers)
        colours = [*palette(VOID).flatten().tolist(), *VOID_COLOUR]
        for mask, view, size in zip(masks, inputs.views, inputs.sizes.tolist(), strict=True):
            numbers = of_whole_image(mask, view, size, nearest=True, fill=VOID).to(torch.uint8)
            image = Image.fromarray(numbers.numpy())
            image.putpalette(colours)
            shares = torch.bincount(mask.flatten().long(), minlength=count) / mask.numel()
            row = {f"share of {name}": share for name, share in zip(request.classes, shares.tolist(), strict=True)}
            yield Prediction([row], png(image))

    def row_text(self, row: Mapping[str, Any]) -> str:
        """The classes that occur with their shares in percent, the largest first."""
        name, *shares = row.items()
        present = sorted(((share, key.removeprefix("share of ")) for key, share in shares if share), reverse=True)
        return f"{name[1]}  " + "  ".join(f"{label} {100 * share:.1f} %" for share, label in present)

    def chance_level(self, data: Data) -> float | None:
        """The largest mean IoU of a constant prediction where all classes occur, 1 / C."""
        return 1 / data.num_classes

    def ensemble(self, teachers: Sequence[Tapped]) -> nn.Module:
        """An ensemble that averages the teachers' probabilities of each pixel."""
        return teachers[0] if len(teachers) == 1 else Ensemble(teachers)


def _counts(
    model: nn.Module, split: Split, data: Data, compute: Compute, teacher: nn.Module | None = None
) -> PixelCounts:
    return count_pixels(
        model, split, data.num_classes, device=compute.device, amp=compute.amp, workers=compute.workers, other=teacher
    )


def _file(data: Data, split: Split, index: int) -> str:
    """The name of an image's file, or else its number."""
    named = split is data.test and index < len(data.test_files)
    return data.test_files[index] if named else f"sample {index}"


def _by_class(data: Data, values: Tensor) -> dict[str, float | None]:
    return dict(zip(data.classes, json_numbers(values), strict=True))


task = Segmentation()
