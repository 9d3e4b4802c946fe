"""Runs of ``siamese_dlf``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import tutelage
from tests.videos import square_videos
from tutelage.data import Data
from tutelage.models.tapped import Tapped

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.02, "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def data() -> Data:
    return square_videos()


@pytest.fixture(scope="module")
def teacher(data: Data) -> Tapped:
    return tutelage.train("siamese8", data, **SHORT).model


def distil(teacher: Tapped, data: Data, **options: Any) -> Any:
    return tutelage.distill(teacher, "siamese4", data, method="siamese_dlf", **SHORT | options)


def test_losses_fall_and_the_teacher_does_not_change(data: Data, teacher: Tapped, tmp_path: Path) -> None:
    before = copy.deepcopy(teacher.module.state_dict())
    result = distil(teacher, data, epochs=4, out=tmp_path, settings={"point": 1, "response": 1, "pair": 10})
    first, last = (record["learners"]["student"] for record in (result.history[0], result.history[-1]))
    for name in ("labels", "point", "point_template", "pair"):  # the response of this teacher is nearly flat
        assert last[name] < first[name], name
    assert last["response"] > 0
    for name, value in teacher.module.state_dict().items():
        assert torch.equal(value, before[name])
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        assert set(file.keys()) == set(result.model.module.state_dict())  # no adapter
    assert result.metrics["task"] == "tracking"
    assert "teacher_average_overlap" in result.metrics["test"]


def test_without_weights_it_is_plain_training(data: Data, teacher: Tapped) -> None:
    result = distil(teacher, data, settings={"point": 0, "response": 0, "pair": 0})
    plain = tutelage.train("siamese4", data, **SHORT)
    for one, two in zip(result.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert result.metrics["forward_passes"]["teacher"] == 0


def test_interrupted_run_equals_an_uninterrupted_one(data: Data, teacher: Tapped, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        raise StoppedError

    distil(teacher, data, out=tmp_path / "whole")
    with pytest.raises(StoppedError):
        distil(teacher, data, out=tmp_path / "parts", report=stop)
    distil(teacher, data, out=tmp_path / "parts")
    whole, parts = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_teacher_of_another_stride_is_resized(data: Data) -> None:
    class Coarse(nn.Module):
        """A Siamese network of stride 8, whose response has 9 places a side."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.template = nn.Conv2d(1, 64, 7, 8), nn.Identity()
            self.roles = {"stage1": "conv", "template": "template"}

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            template = self.template(self.conv(inputs[..., :63, 127:]))
            search = self.conv(inputs[..., :127])
            maps = search.reshape(1, -1, *search.shape[2:])
            return nn.functional.conv2d(maps, template, groups=len(inputs)).transpose(0, 1) / 100

    result = distil(Tapped(Coarse()), data, epochs=1)
    values = result.history[0]["learners"]["student"]
    assert all(values[name] > 0 for name in ("point", "point_template", "response", "pair"))


def test_network_without_a_template_layer_is_refused(data: Data, teacher: Tapped, refused: Any) -> None:
    class Nameless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = copy.deepcopy(teacher.module)
            self.roles = {"stage1": "module.backbone.3"}

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.module(inputs)  # type: ignore[no-any-return]

    with refused("the teacher, Nameless", "template", "siamese8"):
        distil(Tapped(Nameless()), data)


def test_images_are_refused(teacher: Tapped, refused: Any) -> None:
    with refused("classes", "this is tracking"):
        tutelage.distill(teacher, "siamese4", "digits", method="siamese_dlf", **SHORT)
