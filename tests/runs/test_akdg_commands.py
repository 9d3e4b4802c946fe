"""The method akdg on the command line and in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tests.runs.generators import CustomGenerator
from tutelage.cli import main
from tutelage.config import Config
from tutelage.data import Data
from tutelage.models.generator import Generator
from tutelage.models.networks.mlp_gan import MLPGenerator
from tutelage.runs import execute, open_model

# --- command line and Python


def test_end_to_end_on_command_line(
    tiny_npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        options = () if words[0] == "evaluate" else ("--epochs", "1", "--batch-size", "16", "--data", tiny_npz)
        monkeypatch.setattr("sys.argv", ["tutelage", *words, *options, "--device", "cpu"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    command = ("--method", "akdg", "--set", "critic_width=0.1", "--set", "critic_steps=2")
    assert "generated one nearby" in call(
        "train", "--model", "dcganx0.2", *command, "--set", "weight=0", "--out", "teacher"
    )
    words = ("distill", *command, "--student", "mlp-ganx0.1", "--teacher", "teacher", "--out", "student")
    images_by_view = call(*words)
    assert "the teacher's Fréchet distance" in images_by_view
    assert call(*words) == images_by_view  # finished, and loaded
    result = json.loads((tmp_path / "student" / "result.json").read_text())
    assert "train" not in result
    assert result["test"].keys() == {"samples", "features", "frechet_distance", "coverage", "teacher_frechet_distance"}
    second_evaluation = json.loads(call("evaluate", "student", "--teacher", "teacher", "--json"))
    assert second_evaluation["features"] == result["test"].pop("features")
    assert {name: second_evaluation[name] for name in result["test"]} == pytest.approx(result["test"], rel=1e-6)
    assert second_evaluation["cost"]["flops"] == result["cost"]["flops"]
    assert "coverage" in call("evaluate", "student")


def test_end_to_end_in_python(tiny_data: Data, tmp_path: Path) -> None:
    settings = {"critic_width": 0.1, "critic_steps": 1}
    options: dict[str, Any] = {"method": "akdg", "settings": settings, "epochs": 1, "batch_size": 16, "device": "cpu"}
    result = tutelage.distill(
        MLPGenerator((1, 8, 8), 0.1), CustomGenerator(), tiny_data, out=tmp_path / "run", **options
    )
    assert isinstance(result.model, Generator)
    assert result.metrics["test"]["frechet_distance"] > 0


def test_run_is_loaded_as_generator(tiny_npz: str, tiny_data: Data, tmp_path: Path) -> None:
    settings = {"weight": 0, "critic_width": 0.1}
    config = Config(data=tiny_npz, student="dcganx0.1", method="akdg", settings=settings, epochs=1, device="cpu")
    result = execute(config, tmp_path / "run")
    model = open_model(str(tmp_path / "run"), tiny_data)
    images = [m.sample(3, torch.Generator().manual_seed(0)) for m in (model, result.model) if isinstance(m, Generator)]
    assert torch.allclose(*images, atol=1e-6)  # in another memory layout
