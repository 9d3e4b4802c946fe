"""Whole runs of ghnd: a detector from its file, and a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tutelage
from tests.tasks.scenes import scene_data
from tutelage.data import Data
from tutelage.runs.models import open_model

STUDENT = "resnet8x0.25"
TEACHER = "resnet8x0.25"

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "device": "cpu", "precision": "float32", "channels_last": False}


def test_a_split_detector_is_opened_from_its_folder_with_filter(tmp_path: Path) -> None:
    data = scene_data(48, 24, 64)
    teacher = tutelage.train("centre10x0.0625", data, out=tmp_path / "teacher", **SHORT)
    settings = {"filter_recall": 0.8, "channels": 3}
    result = tutelage.distill(
        teacher.model.module,
        "centre10x0.0625",
        data,
        method="ghnd",
        settings=settings,
        out=tmp_path / "student",
        **SHORT,
    )
    assert result.metrics["notes"]["payload_bytes"] == 3 * 20 * 20 + 5
    assert result.metrics["notes"]["filter"]["recall"] >= 0.8
    assert {"ap", "teacher_ap"} <= result.metrics["test"].keys()
    assert "selected" not in result.metrics  # the second fit selects an epoch of the filter
    model = open_model(str(tmp_path / "student"), data)
    images = data.modality.to_input(data.modality.arrange(data.test.inputs[torch.arange(6)]))
    with torch.no_grad():
        assert torch.equal(model(images), result.model(images))


def test_a_classifier_is_split_and_judged_by_accuracy(tiny_data: Data) -> None:
    teacher = tutelage.train("resnet8x0.25", tiny_data, **SHORT | {"epochs": 6})
    result = tutelage.distill(teacher.model.module, "resnet8x0.25", tiny_data, method="ghnd", **SHORT)
    assert result.metrics["notes"]["payload_shape"] == [3, 12, 12]
    assert {"accuracy", "teacher_accuracy"} <= result.metrics["test"].keys()
    assert "validation_accuracy" in result.history[0]["learners"]["student"]
    assert result.history[0]["learners"]["student"].keys() >= {"stage1", "stage2", "stage3"}
    assert result.metrics["selected"]["epoch"] >= 1
