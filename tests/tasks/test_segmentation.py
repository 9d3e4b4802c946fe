"""The segmentation task: checks, labels, drawings, and a network that learns to segment."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tests.tasks.cases import case_of, of_masks
from tutelage.data import Data
from tutelage.data.conditions.parse import parse_noise
from tutelage.data.targets import Masks
from tutelage.errors import TutelageWarning
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, Task, find_task
from tutelage.tasks._overlays import overlaid, palette

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}


@pytest.fixture
def task() -> Task:
    return find_task("segmentation")


@pytest.fixture
def data() -> Data:
    return case_of("segmentation").data


def test_a_network_learns_to_segment(data: Data) -> None:
    before = tutelage.evaluate(Tapped(of_masks(3), *data.mean_std), data)
    result = tutelage.train(lambda: of_masks(3), data, **SHORT | {"epochs": 30, "lr": 0.1}).metrics["test"]
    assert result["mean_iou"] > max(0.75, before["mean_iou"])
    assert result["pixel_accuracy"] > 0.8
    assert set(result["per_class_iou"]) == set(data.classes)
    void = int((data.test.labels == -1).sum())
    assert sum(map(sum, result["confusion"])) == data.test.labels.numel() - void


def test_unlabelled_test_images_have_no_metrics_but_agree_with_the_teacher(data: Data) -> None:
    empty = torch.full_like(data.test.labels, -1)
    data = Data.from_arrays(
        (data.train.inputs, data.train.labels),  # type: ignore[arg-type]
        (data.test.inputs, empty),  # type: ignore[arg-type]
        classes=data.classes,
        targets=Masks(),
    )
    model = Tapped(of_masks(3), *data.mean_std)
    result = tutelage.evaluate(model, data, teacher=model)
    assert result["mean_iou"] is result["nll"] is result["pixel_accuracy"] is None
    assert result["agreement"] == 1


class OfDicts(nn.Module):
    """Returns its maps in a mapping, as segmentation networks of torchvision do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = of_masks(3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.network(images)}


@pytest.mark.parametrize(
    ("network", "pieces"),
    [
        ("resnet8x0.25", ("returns outputs of shape (4, 3)", "(B, 3, h, w)", "fpn-10")),
        (lambda: of_masks(5), ("returns outputs of shape (4, 5, 4, 4)", "each of 3 classes")),
        (OfDicts, ("returns no logits", "dict with out: (4, 3, 4, 4)", "a tensor")),
    ],
)
def test_networks_for_other_outputs_are_refused(
    network: Any, pieces: tuple[str, ...], data: Data, refused: Any
) -> None:
    with refused(*pieces):
        tutelage.train(network, data, **SHORT)


def test_a_segmentation_network_is_refused_for_classes(tiny_data: Data, refused: Any) -> None:
    with refused("returns outputs of shape (4, 4, 8, 8)", "4 classes of tiny"):
        tutelage.train("fpn-10-0.25", tiny_data, **SHORT)


def test_labels_must_have_two_classes(data: Data, task: Task, refused: Any) -> None:
    def with_labels(labels: Tensor) -> Data:
        part = (data.train.inputs, labels)
        return Data.from_arrays(part, part, classes=("a", "b", "c"), targets=Masks())  # type: ignore[arg-type]

    with refused("pixels of 1 class", "255 means void"):
        task.check_labels(with_labels(torch.where(data.train.labels == 0, 0, -1)))
    with pytest.warns(TutelageWarning, match="1 of the 3 classes of arrays have no training pixel \\('c'\\)"):
        task.check_labels(with_labels(data.train.labels.clamp(max=1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.check_labels(data)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"label_smoothing": 0.1}])
def test_changes_of_class_labels_are_refused(options: dict[str, Any], data: Data, refused: Any) -> None:
    with refused("masks"):
        tutelage.train(lambda: of_masks(3), data, **SHORT | options)


def test_conditions_of_classes_are_refused(data: Data, refused: Any) -> None:
    for condition in parse_noise("symmetric:0.4"):
        with refused("masks"):
            condition(data)


class Right(nn.Module):
    """Predicts given masks, image by image, except in rows of some images."""

    def __init__(self, masks: Tensor, wrong: dict[int, int]) -> None:
        super().__init__()
        logits = nn.functional.one_hot(masks.long().clamp(min=0), 3).permute(0, 3, 1, 2).float()
        for image, rows in wrong.items():
            logits[image, :, :rows] = logits[image, :, :rows].roll(1, 0)
        self.logits, self.position = logits, 0

    def forward(self, images: Tensor) -> Tensor:
        self.position += len(images)
        return self.logits[self.position - len(images) : self.position]


def test_drawings_show_the_worst_images_first(data: Data, task: Task) -> None:
    wrong = {5: 8, 2: 6, 9: 4, 11: 2}
    drawings = task.drawings(
        Right(data.test.labels[_labelled(data)], _among_labelled(data, wrong)), data.test, data, Compute()
    )
    worst = [drawing.caption for drawing in drawings if "worst" in drawing.caption]
    assert [int(caption.rpartition(" ")[2]) for caption in worst[:4]] == [5, 2, 9, 11]
    assert worst[0].startswith("worst, IoU 0.0%")
    *drawings, key = drawings
    assert key.caption == "the colours, from left to right: 0, 1, 2"
    assert key.pixels[0, ::16].tolist() == palette(3).tolist()
    assert "typical, IoU 100.0%" in drawings[-1].caption
    assert all(drawing.pixels.shape == (8, 3 * 8 + 2 * 2, 3) for drawing in drawings)
    assert all(drawing.pixels.dtype == torch.uint8 for drawing in drawings)
    # The middle third is the image under its label, the last one under the prediction.
    image = data.test.inputs[torch.tensor([5])][0].expand(-1, -1, 3)
    labels = data.test.labels[5]
    assert torch.equal(drawings[0].pixels[:, :8], image)
    assert torch.equal(drawings[0].pixels[:, 10:18], overlaid(image, labels, palette(3)))
    assert torch.equal(drawings[0].pixels[:, 20:], overlaid(image, (labels.clamp(min=0) + 1) % 3, palette(3)))


def _labelled(data: Data) -> Tensor:
    return data.targets.labelled(data.test.labels).nonzero()[:, 0]


def _among_labelled(data: Data, rows: dict[int, int]) -> dict[int, int]:
    positions = _labelled(data).tolist()
    return {positions.index(row): value for row, value in rows.items()}


def test_the_palette_is_that_of_pascal_voc() -> None:
    assert palette(256)[[0, 1, 2, 3, 8, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [64, 0, 0],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len({tuple(colour) for colour in palette(256).tolist()}) == 256
