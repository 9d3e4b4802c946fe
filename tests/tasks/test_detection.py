"""Detection: metrics, drawings, methods on detectors, and the way from a folder to an exported network."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tests.data.box_files import coco_table, write_coco
from tests.tasks.scenes import CLASSES, scene_data, scenes
from tutelage.data import Boxes, Data, Pixels, Split
from tutelage.errors import TutelageError
from tutelage.evaluation.detection import average_precision
from tutelage.evaluation.detection.detect import detect
from tutelage.models.networks.centre import CentreNet
from tutelage.runs.models import open_model
from tutelage.tasks import Compute, find_task

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}
TASK = find_task("detection")


def small() -> nn.Module:
    return CentreNet(10, 2, 1, 0.0625)


class Squares(nn.Module):
    """A detector that finds the bright squares of scenes by their pixels."""

    task = "detection"

    def forward(self, images: Tensor) -> Tensor:
        outputs = torch.full((len(images), 6, 16, 16), -20.0)
        for number, image in enumerate(images):
            bright = (image[0] > 0.9).nonzero()
            if len(bright) == 0:
                continue
            (top, left), (bottom, right) = bright.amin(0).tolist(), (bright.amax(0) + 1).tolist()
            x, y = (left + right) / 8, (top + bottom) / 8
            outputs[number, 0, int(y), int(x)] = 5.0
            outputs[number, 2:, int(y), int(x)] = torch.tensor(
                [(right - left) / 4, (bottom - top) / 4, x - int(x), y - int(y)]
            )
        return outputs


def single_objects() -> Data:
    """Scenes with one object at most, whose squares ``Squares`` finds exactly."""
    splits = [Split.of(*scenes(24, n, most=1), modality=Pixels(), targets=Boxes()) for n in range(2)]
    return Data("scenes", CLASSES, *splits)


def test_a_perfect_detector_of_one_class_has_half_of_the_mean() -> None:
    data = single_objects()
    metrics = tutelage.evaluate(Squares(), data)
    assert metrics["ap_by_class"] == pytest.approx([1, 0])
    assert (metrics["ap"], metrics["ap50"], metrics["ap75"], metrics["ar100"]) == pytest.approx((0.5,) * 4)
    assert metrics["ap_large"] is None
    assert TASK.score(Squares(), data.test, data, Compute()) == pytest.approx(0.5)


def test_a_split_without_objects_has_no_score() -> None:
    data = single_objects()
    empty = data.test.subset((Boxes().strata(data.test.labels) == 0).nonzero().squeeze(1))
    assert len(empty) > 0
    assert math.isnan(TASK.score(Squares(), empty, data, Compute()))
    assert TASK.evaluate(Squares(), empty, data, Compute())["ap"] is None


def test_a_detector_learns() -> None:
    data = scene_data(128, 32, 48)
    result = tutelage.train(
        lambda: CentreNet(10, 2, 1, 0.125), data, **SHORT | {"epochs": 10, "batch_size": 8, "seed": 1}
    )
    assert result.metrics["test"]["ap50"] > 0.15
    detections = detect(result.model, data.test, device="cpu")
    shifted = detections.clone()
    shifted[..., :4] += 16
    assert average_precision(shifted, data.test.labels, 2).at(0.5) < 0.05


FEATURE_METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "at": {},
    "crd": {},
    "sp": {},
    "rkd": {},
    "fitnet": {"first_weight": 0, "last_weight": 0},
}


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_methods_on_features_train_detectors(name: str) -> None:
    data = scene_data(32, 8, 32)
    settings = FEATURE_METHODS[name]
    result = tutelage.distill(CentreNet(10, 2, 1, 0.125), small, data, method=name, settings=settings, **SHORT)
    assert {"ap", "teacher_ap"} <= result.metrics["test"].keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hinton", "soft targets need logits of classes"),
        ("fitnet", "soft targets need logits of classes"),
        ("dml", "soft targets need logits of classes"),
        ("mean_teacher_lc", "whose task is detection"),
    ],
)
def test_methods_on_distributions_over_classes_are_refused(name: str, words: str, refused: Any) -> None:
    with refused(words):
        tutelage.distill(small(), small, scene_data(32, 8, 32), method=name, **SHORT)


def test_other_networks_are_refused(refused: Any) -> None:
    with refused("outputs of shape", "2 classes", "centre10x0.25"):
        tutelage.train("resnet8x0.25", scene_data(32, 8, 32), **SHORT)
    with refused("is a network for detection", "classification"):
        tutelage.train("centre10x0.125", "digits", method="dml", **SHORT)


def test_a_network_that_returns_nan_is_an_error() -> None:
    class Broken(Squares):
        def forward(self, images: Tensor) -> Tensor:
            outputs = super().forward(images)
            outputs[0, 5, 0, 0] = math.nan  # the geometry of a cell that is no detection
            return outputs

    with pytest.raises(TutelageError, match="NaN"):
        tutelage.evaluate(Broken(), single_objects())


def test_drawings_show_labels_and_detections_with_the_worst_first() -> None:
    data = single_objects()
    drawings = TASK.drawings(Squares(), data.test, data, Compute())
    assert len(drawings) == 12
    missed = [int(drawing.caption.split(" missed")[0].rsplit(" ", 1)[1]) for drawing in drawings]
    assert missed[:8] == sorted(missed[:8], reverse=True)
    assert (missed[0], missed[-1]) == (1, 0)
    for drawing in drawings:
        pixels = drawing.pixels
        assert pixels.dtype == torch.uint8
        assert max(pixels.shape) >= 480
        blue, orange = ((pixels == torch.tensor(c)).all(2).any() for c in ([0, 190, 255], [255, 130, 0]))
        counts = [int(word) for word in drawing.caption.split() if word.isdigit()]
        assert bool(blue) == (counts[0] > 0 and counts[1] == 0) or counts[1] == 1
        assert bool(orange) == (counts[1] > 0)


def test_from_a_folder_to_an_exported_network(tmp_path: Path, run: Any, refused: Any) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    table = coco_table(
        {f"{n}.png": [(4 + n, 6, 20 + n, 22, "light"), (30, 30, 44, 44, "lamp")] for n in range(8)},
        (56, 48),
        ["light", "lamp"],
    )
    for split in ("train", "valid", "test"):
        write_coco(tmp_path / "lamps" / split / "_annotations.coco.json", tmp_path / "lamps" / split, table)
    folder, data = tmp_path / "run", f"boxes:{tmp_path / 'lamps'}"
    options = ["--epochs", "1", "--batch-size", "4", "--image-size", "64", "--model", "centre10x0.0625"]
    code, out, err = run("train", "--data", data, "--out", str(folder), "--device", "cpu", *options)
    assert code == 0, err
    assert "average precision" in out
    result = json.loads((folder / "result.json").read_text())
    assert (result["task"], result["main"]) == ("detection", "ap")
    code, out, err = run("evaluate", str(folder), "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(out)["ap"] == pytest.approx(result["test"]["ap"])
    code, out, err = run("report", str(folder))
    assert code == 0, err
    page = (folder / "report.html").read_text()
    assert "Predictions" in page
    rows = re.findall(r'<tr><th scope="row">(\w+)</th><td>(\d+)</td><td>([\d.]+)</td></tr>', page)
    values = dict(zip(["light", "lamp"], result["test"]["ap_by_class"], strict=True))
    assert {name: (count, value) for name, count, value in rows} == {
        name: ("8", f"{100 * value:.1f}") for name, value in values.items()
    }
    assert "Lowest AP first. AP: the average precision" in page
    assert '<th scope="col">objects</th>' in page
    with refused("is a network for detection, and predict_images is for classification; use predict_files"):
        tutelage.predict_images(folder, tmp_path / "lamps" / "test", device="cpu", workers=0)
    code, out, err = run("export", str(folder), "--onnx", str(tmp_path / "lamps.onnx"))
    assert code == 0, err
    assert "centre_points.decode" in out + err
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "lamps.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.rand(3, 3, 64, 64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = open_model(str(folder), tutelage.open_data(data, image_size=64))(pixels)
    (outputs,) = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), expected, atol=1e-4, rtol=1e-3)


ON_A_DEVICE = """
import torch
from tests import other_device as o
from tests.tasks.scenes import scene_data
from tutelage.data import Batch, Boxes, CropsAndFlips
from tutelage.evaluation.detection import match
from tutelage.models.centre_points import decode
from tutelage.models.networks.centre import CentreNet
from tutelage.models.outputs import Outputs
from tutelage.terms.centre_points import CentreLoss

data = scene_data(4, 2, 32)
views = CropsAndFlips(pad=4, flip=True)
outputs = torch.randn(4, 6, 8, 8)
region = views.region((32, 32), torch.arange(4), torch.arange(4))
images, loss = torch.zeros(4, 1, 32, 32), CentreLoss()
with o.ComputeMode(), o.CreationMode():
    remote, boxes, boxed, images = (x.to(o.NAME) for x in (outputs, data.train.labels, region, images))
    with o.watch.set(True):
        boxes = Boxes().transformed(boxes, boxed, (32, 32))
        values = loss(Outputs(remote), None, Batch(images, boxes, torch.arange(4, device=o.NAME), None))
        found = decode(remote, (32, 32))
    assert not o.watch.seen, o.watch.seen
local = Boxes().transformed(data.train.labels, region, (32, 32))
expected = loss(Outputs(outputs), None, Batch(torch.zeros(4, 1, 32, 32), local, torch.arange(4), None))
torch.testing.assert_close(values.cpu(), expected)
torch.testing.assert_close(found.cpu(), decode(outputs, (32, 32)))
"""


def test_loss_boxes_and_decoding_do_not_wait_for_the_device() -> None:
    subprocess.run([sys.executable, "-c", ON_A_DEVICE], check=True, cwd=Path(__file__).parents[2])
