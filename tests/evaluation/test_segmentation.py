"""The metrics of segmentation: closed forms, and loops over pixels as a reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.data.targets import Masks
from tutelage.errors import NonFiniteError
from tutelage.evaluation import segmentation
from tutelage.evaluation.segmentation import (
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


def reference(predicted: Tensor, masks: Tensor, classes: int) -> dict[str, Any]:
    """All metrics from sets of labelled pixels, without a confusion matrix."""
    pixels = [(p, t) for p, t in zip(predicted.flatten().tolist(), masks.flatten().tolist(), strict=True) if t != -1]
    ious, frequencies = {}, {}
    for c in range(classes):
        is_true, is_predicted = ({n for n, pair in enumerate(pixels) if pair[side] == c} for side in (1, 0))
        frequencies[c] = len(is_true) / len(pixels)
        if is_true | is_predicted:
            ious[c] = len(is_true & is_predicted) / len(is_true | is_predicted)
    return {
        "ious": ious,
        "mean": sum(ious.values()) / len(ious),
        "weighted": sum(frequencies[c] * iou for c, iou in ious.items()),
        "accuracy": sum(p == t for p, t in pixels) / len(pixels),
    }


@pytest.mark.parametrize("seed", range(8))
def test_metrics_equal_those_of_sets_of_pixels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = 2 + seed % 4
    # The last class is in no mask, and the last but one is not predicted.
    masks = torch.randint(-1, max(classes - 1, 1), (3, 5, 4), generator=generator)
    predicted = torch.randint(max(classes - 1, 1), (3, 5, 4), generator=generator)
    predicted[predicted == classes - 2] = classes - 1 if seed % 2 else 0
    expected = reference(predicted, masks, classes)
    confusion = confusion_of(predicted, masks, classes)
    ious = class_iou(confusion)
    assert {c: iou for c, iou in enumerate(ious.tolist()) if not math.isnan(iou)} == pytest.approx(expected["ious"])
    assert float(mean_iou(confusion)) == pytest.approx(expected["mean"], abs=1e-12)
    assert float(frequency_weighted_iou(confusion)) == pytest.approx(expected["weighted"], abs=1e-12)
    assert float(pixel_accuracy(confusion)) == pytest.approx(expected["accuracy"], abs=1e-12)


def test_closed_forms() -> None:
    masks = torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1]])[None]
    right = masks.clamp(min=0)
    assert mean_iou(confusion_of(right, masks, 5)) == 1  # classes 2 to 4 occur nowhere
    constant = torch.zeros_like(masks)
    confusion = confusion_of(constant, masks, 5)
    assert confusion.tolist()[:2] == [[4, 0, 0, 0, 0], [2, 0, 0, 0, 0]]
    torch.testing.assert_close(class_iou(confusion)[:2], torch.tensor([4 / 6, 0.0], dtype=torch.float64))
    assert class_iou(confusion)[2:].isnan().all()
    assert float(mean_iou(confusion)) == pytest.approx(1 / 3)
    assert float(frequency_weighted_iou(confusion)) == pytest.approx(4 / 6 * 4 / 6)
    assert float(pixel_accuracy(confusion)) == pytest.approx(4 / 6)
    assert class_recall(confusion)[:2].tolist() == [1, 0]
    assert float(class_precision(confusion)[0]) == pytest.approx(4 / 6)
    swapped = confusion_of(1 - right, masks, 2)
    assert (mean_iou(swapped), pixel_accuracy(swapped)) == (0, 0)


def test_a_class_predicted_in_void_alone_does_not_occur() -> None:
    masks, predicted = torch.tensor([[[0, 0, -1]]]), torch.tensor([[[0, 0, 2]]])
    assert class_iou(confusion_of(predicted, masks, 3)).isnan().tolist() == [False, True, True]


def test_without_labelled_pixels_metrics_are_undefined() -> None:
    confusion = confusion_of(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), -1), 3)
    for metric in (mean_iou, frequency_weighted_iou, pixel_accuracy):
        assert metric(confusion).isnan()


class Levels(nn.Module):
    """Logits of three classes from grey levels, at half of the images' resolution."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        grey = nn.functional.avg_pool2d(images, 2)
        return torch.cat([-8 * (grey - level - self.shift).square() for level in (0.1, 0.5, 0.9)], 1)


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(5)
    masks = torch.randint(-1, 3, (11, 3, 4), generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
    noise = torch.randint(100, (11, 6, 8), generator=generator)
    images = (100 * masks.clamp(min=0) + noise).clamp(max=255).to(torch.uint8)
    return Data.from_arrays((images, masks), (images, masks), targets=Masks())


def test_batches_do_not_matter(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are the same image by image, and equal the metrics of all pixels at once."""
    model, other = Levels(), Levels(0.3)
    whole = count_pixels(model, data.test, 3, device="cpu", other=other)
    monkeypatch.setattr(segmentation, "LOGITS_AT_ONCE", 1)
    single = count_pixels(model, data.test, 3, device="cpu", other=other)
    images, masks = data.test.inputs.permute(0, 3, 1, 2) / 255, data.test.labels.long()  # type: ignore[union-attr]
    logits, compared = (
        nn.functional.interpolate(network(images), (6, 8), mode="bilinear", align_corners=False)
        for network in (model, other)
    )
    assert torch.equal(whole.confusion, single.confusion)
    assert torch.equal(whole.confusion, confusion_of(logits.argmax(1), masks, 3))
    assert torch.equal(whole.other, confusion_of(compared.argmax(1), masks, 3))  # type: ignore[arg-type]
    assert whole.agreement == single.agreement == float((logits.argmax(1) == compared.argmax(1)).double().mean())
    nll = nn.functional.cross_entropy(logits.double(), masks, ignore_index=-1)
    assert whole.nll == pytest.approx(float(nll), rel=1e-5)
    assert single.nll == pytest.approx(whole.nll, rel=1e-6)
    assert torch.equal(predicted_masks(model, data.test, 3, device="cpu").long(), logits.argmax(1))


def test_an_agreeing_teacher(data: Data) -> None:
    counts = count_pixels(Levels(), data.test, 3, device="cpu", other=Levels())
    assert counts.agreement == 1
    assert counts.other is not None
    assert torch.equal(counts.confusion, counts.other)
    assert math.isnan(count_pixels(Levels(), data.test, 3, device="cpu").agreement)


def test_networks_without_logit_maps_are_refused(data: Data, refused: Any) -> None:
    with refused("(11, 3, 3, 4)", "segmentation needs maps of logits", "5, h, w"):
        count_pixels(Levels(), data.test, 5, device="cpu")
    with refused("(11, 48)", "segmentation needs maps of logits"):
        count_pixels(nn.Flatten(), data.test, 3, device="cpu")


def test_nan_is_an_error(data: Data) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite for 11 of 11 images"):
        count_pixels(Levels(math.nan), data.test, 3, device="cpu")
