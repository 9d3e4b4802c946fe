"""``compress`` and the command ``tutelage compress`` on a small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tests.conftest import Command
from tutelage.compression import compress
from tutelage.models.onnx_network import OnnxNetwork
from tutelage.runs.models import open_model

pytest.importorskip("onnxruntime", reason="needs the extra onnx")

OPTIONS = ("--per-class", "12", "--epochs", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress") / "teacher"
    tutelage.train("resnet8x0.5", "digits", per_class=12, epochs=2, out=folder, device="cpu")
    return folder


@pytest.mark.timeout(240)
def test_command_compares_the_files_of_all_methods(teacher: Path, tmp_path: Path, run: Command) -> None:
    arguments = ("compress", str(teacher), "--data", "digits", "--methods", "uniform_width", "--target", "flops=0.5")
    code, out, err = run(*arguments, *OPTIONS, "--out", str(tmp_path))
    assert code == 0, err
    assert "best compromise between test accuracy and latency: " in out
    summary = json.loads((tmp_path / "compression.json").read_text())
    names = [entry["name"] for entry in summary["variants"]]
    assert names == [
        f"{name}{suffix}"
        for name in ("teacher", "uniform_width-0.5", "uniform_width-scratch-0.5")
        for suffix in ("", " INT8")
    ]
    dense = summary["variants"][0]
    data = tutelage.open_data("digits")
    for entry in summary["variants"]:
        file = tmp_path / entry["file"]
        assert entry["size"] == file.stat().st_size
        model = OnnxNetwork(file)
        with torch.no_grad():
            images = data.test.inputs.permute(0, 3, 1, 2).float() / 255
            accuracy = float((model(images).argmax(1) == data.test.labels).float().mean())
        assert entry["score"] == pytest.approx(accuracy, abs=1e-6)
        if not entry["name"].startswith("teacher"):
            assert 0.4 < entry["flops"] / dense["flops"] <= 0.5
    again = open_model(str(tmp_path / "uniform_width-0.5"), data)
    assert sum(p.numel() for p in again.parameters()) == summary["variants"][2]["parameters"]
    assert summary["knee"]["latency"] in names
    assert "resnet8x0.5" in (tmp_path / "compression.html").read_text()


@pytest.mark.timeout(240)
def test_ways_that_grow_cut_and_remove_units(teacher: Path, tmp_path: Path, run: Command) -> None:
    compression = compress(
        str(teacher),
        "digits",
        target="parameters=0.8",
        methods=["planting", "mint", "lre_amc"],
        out=tmp_path,
        per_class=12,
        epochs=1,
        device="cpu",
    )
    assert compression.failed == {}
    dense, variants = compression.dense, {variant.name: variant for variant in compression.variants}
    names = ["planting-0.8", "mint-0.8", "mint-magnitude-0.8", "lre_amc-0.8"]
    assert [*variants][2:] == [f"{name}{suffix}" for name in names for suffix in ("", " INT8")]
    data = tutelage.open_data("digits")
    images = torch.as_tensor(data.test.inputs).permute(0, 3, 1, 2)[:50] / 255
    for name in names:
        variant, model = variants[name], open_model(str(tmp_path / name), data).eval()
        assert variant.parameters <= (1.0 if name.startswith("lre") else 0.8) * dense.parameters
        with torch.no_grad():
            logits = model(images)
            torch.testing.assert_close(OnnxNetwork(tmp_path / variant.file)(images), logits, rtol=1e-3, atol=1e-4)
        code, out, err = run("evaluate", str(tmp_path / name), "--json")
        assert code == 0, err
        assert json.loads(out)["accuracy"] == pytest.approx(variant.score, abs=1 / len(data.test) + 1e-6)
        if not name.startswith("mint"):
            assert variant.packed is None
            continue
        assert variant.flops == dense.flops
        zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters() if parameter.ndim == 4)
        assert variant.parameters == dense.parameters - zeros
        file = tmp_path / name / "student-packed.safetensors"
        assert variant.packed == file.stat().st_size < 0.9 * (tmp_path / name / "student.safetensors").stat().st_size
        with torch.no_grad():
            assert torch.equal(open_model(f"resnet8x0.5@{file}", data).eval()(images), logits)


def test_what_cannot_be_compressed_is_one_line(teacher: Path, tmp_path: Path, refused: Any) -> None:
    with refused("no method can compress", "cannot be reduced to 0.001"):
        compress(
            str(teacher),
            "digits",
            target="flops=0.001",
            methods=["uniform_width"],
            out=tmp_path,
            per_class=12,
            epochs=1,
            device="cpu",
        )
    with refused("a target is"):
        compress(str(teacher), "digits", target="flops", out=tmp_path)
