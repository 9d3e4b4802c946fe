"""The method barcode from end to end, on a few small images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage import distill, evaluate, train
from tutelage.api import Result
from tutelage.cli import main
from tutelage.data import Data, open_data
from tutelage.models.zoo import build

SHORT: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 64,
    "optimizer": "Adam",
    "lr": 4e-3,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "device": "cpu",
    "precision": "float32",
    "workers": 0,
}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.data.formats.barcodes.SIZES", {"train": 256, "validation": 64, "test": 64})


@pytest.fixture
def teacher(tmp_path: Path) -> Result:
    return train("barcode4", "barcodes:0.2", out=tmp_path / "teacher", **SHORT)


class StoppedError(Exception):
    """A run is interrupted."""


def command(line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["tutelage", *line])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return capsys.readouterr().out


def test_network_learns_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first digit is not drawn as bars: it follows from the parities of six others."""
    monkeypatch.setattr("tutelage.data.formats.barcodes.SIZES", {"train": 1024, "validation": 64, "test": 256})
    result = train("barcode4", "barcodes:0.1", **SHORT | {"epochs": 7, "batch_size": 32, "precision": "auto"})
    test = result.metrics["test"]
    assert test["symbol_accuracy"] > 0.5
    assert test["accuracy_by_place"][0] == min(test["accuracy_by_place"])


@pytest.mark.parametrize("method", ["hinton", "barcode"])
def test_a_stopped_run_resumes_exactly(method: str, teacher: Result, tmp_path: Path, state_of: Any) -> None:
    def stop(record: Any) -> None:
        raise StoppedError

    options: dict[str, Any] = {"method": method, "data": "barcodes:0.2", "student": "barcode2", **SHORT}
    reference = distill(str(teacher.folder), out=tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        distill(str(teacher.folder), out=tmp_path / "parts", report=stop, **options)
    parts = distill(str(teacher.folder), out=tmp_path / "parts", **options)
    for name, value in state_of(reference.model).items():
        assert torch.equal(value, state_of(parts.model)[name])
    assert reference.metrics["test"] == parts.metrics["test"]
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_student_equals_hinton_and_k_is_recorded(teacher: Result, tmp_path: Path, state_of: Any) -> None:
    options: dict[str, Any] = {"data": "barcodes:0.2", "student": "barcode2", **SHORT}
    hinton = distill(str(teacher.folder), method="hinton", **options)
    result = distill(str(teacher.folder), method="barcode", out=tmp_path / "run", **options)
    for name, value in state_of(hinton.model).items():
        assert torch.equal(value, state_of(result.model)[name])
    assert result.history[-1]["learners"]["student"]["kd"] > 0
    written_result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written_result["task"], written_result["main"]) == ("barcode", "string_accuracy")
    assert written_result["notes"]["smart_inference"]["candidates"] in (0, 1, 2, 3, 4, 6)
    assert written_result["test"]["teacher_string_accuracy"] is not None


def test_alpha_zero_equals_plain(teacher: Result, state_of: Any) -> None:
    plain = train("barcode2", "barcodes:0.2", **SHORT)
    result = distill(
        str(teacher.folder), "barcode2", "barcodes:0.2", method="barcode", settings={"alpha": 0.0}, **SHORT
    )
    for name, value in state_of(plain.model).items():
        assert torch.equal(value, state_of(result.model)[name])


def test_run_can_be_loaded_and_evaluated(
    teacher: Result, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = command(["evaluate", str(teacher.folder), "--device", "cpu", "--json"], capsys, monkeypatch)
    metrics = json.loads(output)
    test = teacher.metrics["test"]
    assert {name: metrics[name] for name in test} == test
    other = command(
        ["evaluate", str(teacher.folder), "--data", "barcodes:1.4", "--device", "cpu", "--json"], capsys, monkeypatch
    )
    assert json.loads(other)["nll"] > metrics["nll"]


def test_export_reports_that_decision_rule_is_not_included(
    teacher: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "reader.onnx"
    output = command(["export", str(teacher.folder), "--onnx", str(file)], capsys, monkeypatch)
    (line,) = [line for line in output.splitlines() if "decision rule" in line]
    assert "smart_inference.read" in line
    data = open_data("barcodes:0.2")
    pixels = data.modality.to_input(data.modality.arrange(data.test.inputs[torch.arange(5)]))
    (logits,) = onnxruntime.InferenceSession(str(file)).run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), teacher.model.eval()(pixels), rtol=1e-4, atol=1e-4)


def test_networks_with_other_outputs_are_refused(refused: Any) -> None:
    with refused("(B, 13, 10)", "returns outputs of shape"):
        train("resnet8x0.25", "barcodes:0.2", **SHORT)
    with refused("barcode0"):
        build("barcode0", num_classes=10, input_shape=(1, 24, 192))


def test_methods_for_classes_are_refused(teacher: Result, refused: Any) -> None:
    with refused("digits of barcodes", "barcode", "classification"):
        distill(str(teacher.folder), "barcode2", "barcodes:0.2", method="dkd", **SHORT | {"epochs": 1})


def test_barcodes_as_data_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("barcodes:0.2")
    assert isinstance(data, Data)
    result = train("barcode2", data, **SHORT | {"epochs": 1})
    assert evaluate(result.model, data) == result.metrics["test"]


def test_logits_of_strings_are_cached(teacher: Result, tmp_path: Path, state_of: Any) -> None:
    options: dict[str, Any] = {"student": "barcode2", "data": "barcodes:0.2", "method": "hinton", "views": 2, **SHORT}
    computed = distill(str(teacher.folder), **options)
    first, second = (distill(str(teacher.folder), teacher_cache=str(tmp_path / "cache"), **options) for _ in range(2))
    for result in (first, second):
        for name, value in state_of(computed.model).items():
            assert torch.equal(value, state_of(result.model)[name])
    assert len(list((tmp_path / "cache").glob("*.outputs"))) == 1
    passes = [result.metrics["forward_passes"]["teacher"] for result in (computed, first, second)]
    assert passes[0] > passes[1] > passes[2]
