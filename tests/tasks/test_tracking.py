"""The tracking task: label loss, metrics, training and drawings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tests.videos import moving_squares, square_videos
from tutelage.config import Hardware
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.data.targets import Track
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.tasks import Compute, find_task
from tutelage.tasks._tracks import heated, outline, selected
from tutelage.tasks.tracking import ResponseLoss, Tracking, places

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu", "precision": "float32"}
TASK = find_task("tracking")


@pytest.fixture(scope="module")
def data() -> Data:
    return square_videos()


def centred(offset: tuple[float, float] = (0.0, 0.0), search: int = 127) -> Tensor:
    """A box in the middle of a search crop, moved by some pixels."""
    return torch.tensor([[search / 2 - 10 + offset[0], search / 2 - 15 + offset[1], 20.0, 30.0]])


def batch_of(boxes: Tensor, search: int = 127) -> Batch:
    inputs = torch.zeros(len(boxes), 1, search, search + (search - 1) // 2)
    return Batch(inputs, boxes, torch.arange(len(boxes)), None)


@pytest.mark.parametrize("search", [127, 255])
def test_thirteen_of_289_places_are_the_object(search: int) -> None:
    boxes = centred(search=search)
    truth = places(boxes, batch_of(boxes, search).inputs, 17)[0]
    assert truth.sum() == 13
    assert truth.numel() == 289
    for row in range(17):
        for column in range(17):
            assert truth[row, column] == float(abs(row - 8) + abs(column - 8) <= 2)


def test_places_follow_the_box_by_the_stride() -> None:
    boxes = torch.cat([centred((8.1, -4.2)), centred((31.9, 0.0))])
    truth = places(boxes, batch_of(boxes).inputs, 17)
    y, x = truth[0].nonzero().float().mean(0)
    assert (x, y) == (10, 7)
    assert truth[1].sum() == 9  # the others are beyond the rim
    assert truth[1, 8, 16] == 1


def test_loss_equals_its_equation_in_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    response = torch.randn(3, 1, 17, 17, generator=generator, dtype=torch.float64)
    boxes = torch.cat([centred(), centred((7.0, 3.0)), centred((30.0, -30.0))]).double()
    loss = ResponseLoss()(Outputs(response), None, batch_of(boxes))
    truth = places(boxes, batch_of(boxes).inputs, 17)
    for sample in range(3):
        inside = int(truth[sample].sum())
        total = 0.0
        for row in range(17):
            for column in range(17):
                r, y = float(response[sample, 0, row, column]), float(truth[sample, row, column])
                weight = 0.5 / inside if y else 0.5 / (289 - inside)
                total += weight * (math.log1p(math.exp(r)) - y * r)
        assert loss[sample] == pytest.approx(total)


def test_weights_are_halves() -> None:
    batch = batch_of(centred())
    zeros = torch.zeros(1, 1, 17, 17)
    assert ResponseLoss()(Outputs(zeros), None, batch) == pytest.approx(math.log(2))
    perfect = 100 * (2 * places(batch.targets, batch.inputs, 17)[:, None] - 1)
    assert ResponseLoss()(Outputs(perfect), None, batch) == pytest.approx(0)
    assert ResponseLoss()(Outputs(perfect + 1000), None, batch) == pytest.approx(450)  # half of a loss of 900


def test_plain_training_improves_the_loss_and_records_every_metric(data: Data, tmp_path: Path) -> None:
    result = tutelage.train("siamese4", data, out=tmp_path, **SHORT | {"epochs": 4})
    test = result.metrics["test"]
    assert {name for name in TASK.metrics if "teacher" not in name} <= test.keys()
    assert (test["samples"], test["videos"]) == (24, 4)
    losses = [record["learners"]["student"]["labels"] for record in result.history]
    assert losses[-1] < losses[0] < math.log(2) + 0.1
    assert list(test["overlap_of_videos"]) == ["8", "9", "10", "11"]
    assert len(test["success_curve"]["share"]) == 21
    assert tutelage.evaluate(result.model, data) == test
    selected_epoch = result.metrics["selected"]
    scores = [record["learners"]["student"]["validation_average_overlap"] for record in result.history]
    assert selected_epoch["validation_average_overlap"] == max(scores)
    assert TASK.score(result.model, data.test, data, Compute()) == pytest.approx(test["average_overlap"])
    without_window = Tracking(window=0.0).evaluate(result.model, data.test, data, Compute())
    assert without_window.keys() == test.keys()
    assert without_window["average_overlap"] != test["average_overlap"]


def test_interrupted_run_equals_an_uninterrupted_one(data: Data, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        raise StoppedError

    tutelage.train("siamese4", data, out=tmp_path / "whole", **SHORT)
    with pytest.raises(StoppedError):
        tutelage.train("siamese4", data, out=tmp_path / "parts", report=stop, **SHORT)
    tutelage.train("siamese4", data, out=tmp_path / "parts", **SHORT)
    whole, parts = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.fixture(scope="module")
def teacher(data: Data) -> Tapped:
    """A barely trained teacher."""
    return tutelage.train("siamese6", data, **SHORT | {"epochs": 1}).model


def test_methods_on_features_train_under_a_teacher(data: Data, teacher: Tapped) -> None:
    expected = TASK.score(teacher, data.test, data, Compute())
    for name, settings in (("at", {}), ("fitnet", {"mode": "joint"})):
        result = tutelage.distill(teacher, "siamese4", data, method=name, **SHORT | {"epochs": 1}, settings=settings)
        assert result.metrics["forward_passes"]["teacher"] > 0
        assert result.metrics["test"]["teacher_average_overlap"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hinton", ["soft targets need logits of classes", "tracking"]),
        ("dml", ["soft targets need logits of classes", "tracking"]),
        ("dkd", ["classification", "choose a method for tracking"]),
        ("rkd", ["no role 'embedding'", "stage4, template"]),
    ],
)
def test_other_methods_are_refused(name: str, words: list[str], data: Data, teacher: Tapped, refused: Any) -> None:
    with refused(*words):
        tutelage.distill(teacher, "siamese4", data, method=name, **SHORT)


def test_other_networks_and_data_are_refused(data: Data, refused: Any) -> None:
    with refused("returns outputs of shape (4, 1)", "responses (B, 1, R, R)"):
        tutelage.train(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1)), data, **SHORT)
    pixels, labels = moving_squares()
    images = Data.from_arrays((pixels, labels), (pixels, labels), targets=Track())
    with refused("needs frames of videos", "images"):
        tutelage.evaluate(nn.Identity(), images)
    with refused("175 pixels or more", "127", "--image-size 255"):
        tutelage.train("siamfc24", data, **SHORT)


def test_fixed_box_is_the_chance_level(data: Data) -> None:
    level = TASK.chance_level(data)
    result = tutelage.evaluate(Tapped(nn.Sequential(_Centre())), data)
    assert level == pytest.approx(result["fixed_average_overlap"] + 0.02)
    assert result["average_overlap"] == pytest.approx(result["fixed_average_overlap"], abs=0.02)


class _Centre(nn.Module):
    """The same response for all pairs, highest in the middle: its boxes stay where they are."""

    def forward(self, inputs: Tensor) -> Tensor:
        line = 8.0 - (torch.arange(17.0) - 8).abs()
        return (line[:, None] + line).expand(len(inputs), 1, 17, 17)


def test_evaluation_is_faster_than_an_epoch(on_cpu: Hardware) -> None:
    """Fewer forward passes than training has: one per video and scale in a frame, in batches."""
    calls: list[int] = []

    class Counting(_Centre):
        def forward(self, inputs: Tensor) -> Tensor:
            calls.append(len(inputs))
            return super().forward(inputs)

    data = square_videos(videos=6, frames=5)
    TASK.score(Tapped(Counting()), data.validation, data, Compute())  # type: ignore[arg-type]
    assert calls == [18] * 4


def test_drawings_show_the_worst_video_first(data: Data) -> None:
    drawings = TASK.drawings(Tapped(_Centre()), data.test, data, Compute())
    shares = [int(drawing.caption.rpartition(" ")[2].removesuffix("%")) for drawing in drawings]
    assert shares == sorted(shares)
    assert len(drawings) == 4
    for drawing in drawings:
        assert drawing.pixels.dtype == torch.uint8
        assert drawing.pixels.shape[2] == 3
        red, green, _ = drawing.pixels.int().unbind(2)
        assert (green - red).max() > 60
        assert (red - green).max() > 60


def test_selected_videos_are_worst_typical_and_best() -> None:
    assert selected(torch.tensor([0.5, 0.1, 0.9, 0.3, 0.2, 0.6, 0.7])) == [1, 4, 3, 0, 2]
    assert selected(torch.tensor([0.5])) == [0]


def test_outlines_are_cut_at_the_rim() -> None:
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    outline(image, (2.0, 3.0, 4.0, 3.0), (9, 9, 9), 1)
    assert image[..., 0].count_nonzero() == 10
    assert image[3, 2:6].all()
    assert not image[4, 3:5].any()
    outline(image, (-5.0, -5.0, 30.0, 30.0), (9, 9, 9), 1)
    assert image[..., 0].count_nonzero() == 10


def test_heat_is_where_the_template_was_found() -> None:
    response = torch.zeros(17, 17)
    response[8, 12] = 1.0  # 16 pixels to the right of the middle
    image = heated(torch.zeros(127, 127, 3, dtype=torch.uint8), response)
    y, x = divmod(int(image[..., 0].flatten().argmax()), 127)
    assert abs(y - 63) <= 2
    assert abs(x - 79) <= 2
    assert not image[:28].any()


def test_recipe_of_classes_does_not_apply(data: Data, refused: Any) -> None:
    with refused("mixup", "one class for each sample"):
        tutelage.train("siamese4", data, **SHORT, mixup=0.2)
