"""The loading script runs a student in plain PyTorch with the same outputs."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tutelage.config import Config
from tutelage.data import Data
from tutelage.models.tapped import Tapped
from tutelage.runs import execute, open_model
from tutelage.runs.loading_script import add_loading_script, loading_script

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "precision": "float32"}


def test_the_script_in_a_runs_folder_gives_equal_logits(
    tmp_path: Path, tiny_npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(Config(data=tiny_npz, student="resnet8x0.25", **SHORT), tmp_path / "run")
    add_loading_script(tmp_path / "run")
    monkeypatch.chdir("/")  # the folder may be anywhere
    script = runpy.run_path(str(tmp_path / "run" / "load.py"))
    pixels = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        expected = open_model(str(tmp_path / "run"), tutelage.open_data(tiny_npz)).eval()(pixels)
        assert torch.equal(script["student"](pixels), expected)
    assert script["classes"] == ["a", "b", "c", "d"]
    assert script["mean"].shape == (1, 1, 1, 1)


@pytest.mark.parametrize("method", ["final_bn", "one"])
def test_a_student_after_surgery_is_built_again(method: str, tmp_path: Path, tiny_npz: str) -> None:
    execute(Config(data=tiny_npz, student="resnet8x0.25", method=method, **SHORT), tmp_path / "run")
    add_loading_script(tmp_path / "run")
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = open_model(str(tmp_path / "run"), tutelage.open_data(tiny_npz)).eval()(pixels)
        assert torch.equal(runpy.run_path(str(tmp_path / "run" / "load.py"))["student"](pixels), expected)


def test_the_line_that_builds_a_users_network_is_left_to_the_user(
    tiny_data: Data, tiny_model: Callable[..., Tapped], tmp_path: Path
) -> None:
    result = tutelage.train(tiny_model().module, tiny_data, out=tmp_path / "run", **SHORT)
    file = tmp_path / "run" / "load.py"
    text = file.read_text()
    assert text.count("network = ...  # build your network here: ") == 1
    namespace = runpy.run_path(
        _written(tmp_path / "run" / "own.py", text.replace("...  #", "NETWORK  #")), {"NETWORK": tiny_model(3).module}
    )
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(namespace["student"](pixels), result.model.eval()(pixels))


def test_a_script_that_cannot_be_written_is_skipped(tmp_path: Path) -> None:
    add_loading_script(tmp_path / "absent")
    (tmp_path / "student.safetensors").write_bytes(b"damaged")
    add_loading_script(tmp_path)
    assert not (tmp_path / "load.py").exists()
    (tmp_path / "load.py").write_text("# mine")
    add_loading_script(tmp_path)
    assert (tmp_path / "load.py").read_text() == "# mine"


def _written(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


def test_network_with_own_normalisation_gets_raw_inputs() -> None:
    about: dict[str, Any] = {
        "classes": ["a", "b'\n"],
        "image_shape": [3, 8, 8],
        "mean": [0.0],
        "std": [1.0],
        "surgery": [],
    }
    text = loading_script({**about, "model": "given:x\nimport os"})
    assert "mean" not in text
    assert "return network.eval()(inputs)" in text
    assert len([line for line in text.splitlines() if line.startswith("import")]) == 1
    compile(text, "load.py", "exec")
