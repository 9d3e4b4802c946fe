"""The saliency task: where people look in an image."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.data import Data, Split
from tutelage.data.inputs.images import of_whole_image
from tutelage.data.loader import evaluation_batches
from tutelage.data.modality import Pixels
from tutelage.errors import TutelageError
from tutelage.evaluation.json_numbers import json_number
from tutelage.evaluation.saliency import METRICS, cc, centre_scores, map_scores, predict_maps
from tutelage.models.modes import eval_mode
from tutelage.models.outputs import Outputs
from tutelage.models.random_state import fixed_draws
from tutelage.tasks.drawing import Drawing
from tutelage.tasks.metric import Curve, Metric
from tutelage.tasks.prediction import BATCH, Prediction, Request, png
from tutelage.tasks.task import Compute, Task
from tutelage.terms import MapCrossEntropy, MapSoftTargets
from tutelage.terms.term import Term

WORST, TYPICAL = 6, 6  # drawings
GAP = 4  # pixels between the panels of a drawing


class Saliency(Task):
    """Saliency maps: the logistic function of the logits (B, 1, H, W), for each pixel.

    The main metric is the correlation coefficient (CC): it needs a density alone and not single fixations, does not
    change with the scale of a map, and treats missed and invented regions alike. The metrics ``centre_...`` are those
    of a centred Gaussian on the same images, since people look at the centre of any picture.
    """

    decision_rule: ClassVar[str] = "the saliency of a pixel, in [0, 1], is the logistic function of its logit"
    prediction_suffix: ClassVar[str] = ".png"
    training_metric_note: ClassVar[str] = "The correlation with the given maps over the training batches."

    metrics: ClassVar[Mapping[str, Metric | Curve]] = MappingProxyType(
        {
            "cc": Metric("correlation with the fixation density (CC)", "higher"),
            "nss": Metric("normalised scanpath saliency (NSS)", "higher"),
            "auc_judd": Metric("AUC-Judd", "higher"),
            "auc_borji": Metric("AUC-Borji", "higher"),
            "auc_shuffled": Metric("shuffled AUC", "higher"),
            "sim": Metric("similarity of densities (SIM)", "higher"),
            "kl": Metric("KL divergence from the fixation density", "lower"),
            "centre_cc": Metric("CC of a centred Gaussian", None),
            "centre_nss": Metric("NSS of a centred Gaussian", None),
            "centre_auc_judd": Metric("AUC-Judd of a centred Gaussian", None),
            "centre_auc_shuffled": Metric("shuffled AUC of a centred Gaussian", None),
            "teacher_cc": Metric("the teacher's CC", None),
        }
    )
    columns: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"cc": "CC", "nss": "NSS", "auc_judd": "AUC-Judd", "auc_shuffled": "shuffled AUC", "sim": "SIM", "kl": "KL"}
    )

    def check_data(self, data: Data) -> None:
        """Require images, and maps of their size."""
        super().check_data(data)
        _, *size = data.image_shape
        for name, split in data.splits.items():
            if list(split.labels.shape[2:]) != size or not isinstance(split.modality, Pixels):
                raise TutelageError(
                    f"the maps of the {name} split of {data.name} are {_size(split.labels.shape[2:])}, and its images "
                    f"{_size(size)}; scale the maps to the size of the images"
                )

    def label_loss(self) -> Term:
        """Cross-entropy of each pixel with the density, scaled to a maximum of 1."""
        return MapCrossEntropy()

    def soft_targets(self, temperature: float) -> Term:
        """Hinton's loss for each pixel, whose two outcomes are looked at or not."""
        return MapSoftTargets(temperature)

    def check(self, name: str, outputs: Outputs, data: Data) -> None:
        """Require one map of the size of the images."""
        logits = outputs.logits
        _, height, width = data.image_shape
        if logits is not None and (logits.ndim != 4 or tuple(logits.shape[1:]) != (1, height, width)):
            raise TutelageError(
                f"{name} returns outputs of shape {tuple(logits.shape)} for the {height} x {width} saliency maps of "
                f"{data.name}; give it outputs (B, 1, {height}, {width}), as fastsal-a has"
            )

    def training_metric(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """The sum of the correlations of the labelled images, and their number."""
        if outputs.logits is None:
            return None
        density = batch.targets[:, 0]
        known = ~density[:, 0, 0].isnan()
        values = cc(outputs.logits.detach()[:, 0].sigmoid(), density)
        return torch.stack([values.where(known, 0.0).sum(), known.sum()]).float()

    def score(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> float:
        """The mean correlation."""
        return float(_scores(model, split, compute, ("cc",))["cc"].nanmean())

    def evaluate(
        self, model: nn.Module, split: Split, data: Data, compute: Compute, *, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Compute the mean of each metric over the images whose labels define it."""
        result: dict[str, Any] = {"samples": len(split)}
        result |= {name: json_number(values.nanmean()) for name, values in _scores(model, split, compute).items()}
        centre = ("cc", "nss", "auc_judd", "auc_shuffled")
        result |= {f"centre_{name}": json_number(v.nanmean()) for name, v in centre_scores(split, centre).items()}
        if teacher is not None:
            scores = map_scores(teacher, split, metrics=("cc",), device=compute.device, workers=compute.workers)
            result["teacher_cc"] = json_number(scores["cc"].nanmean())
        return result

    def drawings(self, model: nn.Module, split: Split, data: Data, compute: Compute) -> Sequence[Drawing]:
        """Each image beside its density with the fixations, and the prediction: the worst ones, then typical ones."""
        scores = _scores(model, split, compute, ("cc", "nss"))
        ranked = scores["cc"].argsort(stable=True)[: int((~scores["cc"].isnan()).sum())]
        rest = ranked[WORST:]
        typical = rest[torch.arange(min(TYPICAL, len(rest))) * len(rest) // max(1, min(TYPICAL, len(rest)))]
        rows = torch.cat([ranked[:WORST], typical])
        if not len(rows):
            return ()
        part = split.subset(rows)
        (batch,) = evaluation_batches(part, device=compute.device, batch_size=len(rows), workers=0)
        with eval_mode(model), torch.no_grad():
            maps = predict_maps(model, batch.inputs, batch.targets.shape[2:]).cpu()
        drawings = []
        for number, row in enumerate(rows.tolist()):
            index, nss = int(split.index[row]), json_number(scores["nss"][row])
            name = data.test_files[index] if index < len(data.test_files) else f"sample {index}"
            caption = f"{name}: image, where people looked, prediction; CC {float(scores['cc'][row]):.2f}"
            caption += "" if nss is None else f", NSS {nss:.2f}"
            pixels = _panels(batch.inputs[number].cpu(), batch.targets[number].cpu(), maps[number])
            drawings.append(Drawing(pixels, caption))
        return drawings

    def predictions(self, request: Request) -> Iterator[Prediction]:
        """A grey PNG of the size of each image, black where the network does not see it, and the place of its peak.

        White is a probability of 1: maps of several images can be compared. The place is in pixels from 0.
        """
        model, inputs = request.model, request.inputs
        size = inputs.split.inputs.shape[1:3]
        batches = evaluation_batches(inputs.split, device=request.device, batch_size=BATCH, workers=request.workers)
        with eval_mode(model), fixed_draws(model), torch.no_grad():
            maps = torch.cat([predict_maps(model, batch.inputs, size).cpu() for batch in batches])
        for seen, view, whole in zip(maps, inputs.views, inputs.sizes.tolist(), strict=True):
            values = of_whole_image(seen, view, whole, nearest=False, fill=0.0)
            y, x = divmod(int(values.argmax()), values.shape[1])
            grey = (255 * values).round().to(torch.uint8)
            yield Prediction([{"peak_x": x, "peak_y": y}], png(Image.fromarray(grey.numpy())))


def _scores(model: nn.Module, split: Split, compute: Compute, metrics: Collection[str] = METRICS) -> dict[str, Tensor]:
    return map_scores(model, split, metrics=metrics, device=compute.device, amp=compute.amp, workers=compute.workers)


def _panels(image: Tensor, label: Tensor, prediction: Tensor) -> Tensor:
    """An image (C, H, W), its label (2, H, W) and a map (H, W) side by side: (H, 3 W + gaps, 3) uint8."""
    density, fixations = label
    people = _grey(density)
    people[:, fixations > 0] = torch.tensor([1.0, 0.25, 0.1])[:, None]
    colours = image[:3] if len(image) > 1 else image.expand(3, -1, -1)
    gap = torch.ones(3, density.shape[0], GAP)
    row = torch.cat([colours, gap, people, gap, _grey(prediction)], 2)
    return (row.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def _grey(values: Tensor) -> Tensor:
    """A map (H, W) from its smallest to its largest value as grey (3, H, W) in [0, 1]."""
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(1e-12)).expand(3, -1, -1).clone()


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(extent) for extent in shape)


task = Saliency()
