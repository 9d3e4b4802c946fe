"""The method one: weights files of the ensemble and of a branch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tests.runs.calls import Net, pixels
from tutelage.config import Config
from tutelage.data import Data
from tutelage.models.surgery.branch import Branched
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_metadata
from tutelage.runs import execute, open_model


@pytest.fixture
def config(tiny_npz: str) -> Config:
    return Config(
        data=tiny_npz,
        student="resnet8x0.25",
        method="one",
        settings={"deploy": "ensemble", "branches": 4},
        epochs=2,
        batch_size=16,
        lr=0.1,
        device="cpu",
    )


@pytest.mark.parametrize(("name", "at"), [("resnet8x0.25", "layer2"), ("wrn-10-1", "block2")])
def test_ensemble_can_be_saved_and_loaded(name: str, at: str, config: Config, tiny_data: Data, tmp_path: Path) -> None:
    config = config.replace(student=name, epochs=10, lr=0.2)
    result = execute(config, tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    assert read_metadata(file)["surgery"] == [{"operation": "branch", "at": at, "branches": 4, "combine": "gate"}]
    expected = result.model.eval()(pixels(tiny_data))
    opened_model = open_model(str(tmp_path / "run"), tiny_data)
    second_model = execute(config, tmp_path / "run").model
    for model in (opened_model, second_model, open_model(f"{name}@{file}", tiny_data)):
        assert isinstance(model.module, Branched)
        assert torch.equal(model.eval()(pixels(tiny_data)), expected)
    assert result.metrics["test"]["samples"] == 16
    # it can be a teacher, by its logits or its maps
    for method in ("hinton", "at"):
        for teacher in (str(tmp_path / "run"), opened_model, second_model):
            teacher_outputs = tutelage.distill(
                teacher, "resnet8x0.25", tiny_data, method=method, epochs=1, batch_size=16, device="cpu"
            )
            assert math.isfinite(teacher_outputs.metrics["test"]["nll"])


def test_ensemble_of_given_student_can_be_loaded(tiny_data: Data, tiny_model: Net, tmp_path: Path) -> None:
    def train() -> tutelage.Result:
        return tutelage.train(
            tiny_model().module,
            tiny_data,
            method="one",
            settings={"deploy": "ensemble"},
            out=tmp_path / "run",
            epochs=1,
            batch_size=16,
            device="cpu",
        )

    first, second = train().model.eval(), train().model.eval()
    assert torch.equal(first(pixels(tiny_data)), second(pixels(tiny_data)))


def test_loaded_plain_student_keeps_roles(tiny_data: Data, tmp_path: Path) -> None:
    def train() -> tutelage.Result:
        student = Tapped(TwoConvs(), roles={"mine": "first"})
        return tutelage.train(student, tiny_data, out=tmp_path / "run", epochs=1, batch_size=16, device="cpu")

    class TwoConvs(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.flat, self.fc = nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 4)

    first, second = train().model, train().model
    assert "mine" in first.taps
    assert "mine" in second.taps
    assert torch.equal(
        first.tap(pixels(tiny_data), ("mine",))["mine"], second.tap(pixels(tiny_data), ("mine",))["mine"]
    )


def test_branch_is_saved_as_plain_network(config: Config, tiny_data: Data, tmp_path: Path) -> None:
    plain = config.replace(settings={"deploy": "branch"})
    result = execute(plain, tmp_path / "run")
    assert read_metadata(tmp_path / "run" / "student.safetensors")["surgery"] == []
    opened_model = open_model(str(tmp_path / "run"), tiny_data).eval()
    assert type(opened_model.module).__name__ == "ResNet"
    assert torch.equal(opened_model(pixels(tiny_data)), result.model.eval()(pixels(tiny_data)))
    assert torch.equal(
        opened_model(pixels(tiny_data)), execute(plain, tmp_path / "run").model.eval()(pixels(tiny_data))
    )


def test_damaged_ensemble_file_is_a_one_line_error(
    config: Config, tiny_data: Data, tmp_path: Path, refused: Any
) -> None:
    from tutelage.models.weights import save_weights

    result = execute(config, tmp_path / "run")
    file = tmp_path / "run" / "student.safetensors"
    about = read_metadata(file)
    surgery = [{"operation": "branch", "at": "nowhere"}]
    digest = save_weights(file, result.model.module, about | {"surgery": surgery})
    result_file = tmp_path / "run" / "result.json"
    result_file.write_text(json.dumps(json.loads(result_file.read_text()) | {"student_sha256": digest}))
    with refused("unknown layer", "'nowhere'", "remove", "result.json"):
        execute(config, tmp_path / "run")
    with refused("unknown layer", "'nowhere'"):
        open_model(str(tmp_path / "run"), tiny_data)
