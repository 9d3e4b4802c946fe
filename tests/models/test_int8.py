"""INT8 versions of ONNX files: weights of 8 bits, outputs near the float32 ones, errors that lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tutelage.data import open_data
from tutelage.evaluation.metrics import accuracy
from tutelage.evaluation.predict import predict
from tutelage.models.calibration import Calibration
from tutelage.models.export import export_onnx
from tutelage.models.int8 import quantise_onnx
from tutelage.models.onnx_network import OnnxNetwork
from tutelage.models.tapped import Tapped
from tutelage.runs.int8 import Comparison, Measured, export_int8
from tutelage.tasks import find_task

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

CALIBRATION = Calibration(temperature=2.0, sets="lac", threshold=0.5, coverage=0.9, samples=10)


@pytest.fixture
def network(tiny_model: Callable[..., Tapped]) -> Tapped:
    model = tiny_model(width=8)
    model(torch.rand(64, 1, 8, 8))  # running statistics
    return model.eval()


def weight_bits(path: Path) -> dict[str, int]:
    """The number of weights of each data type in a file."""
    counts: dict[str, int] = {}
    for tensor in onnx.load(str(path)).graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        counts[name] = counts.get(name, 0) + len(onnx.numpy_helper.to_array(tensor).flatten())
    return counts


def test_weights_have_8_bits_and_outputs_are_near_those_of_float32(network: Tapped, tmp_path: Path) -> None:
    images = torch.rand(64, 1, 8, 8)
    export_onnx(network, (1, 8, 8), tmp_path / "float.onnx", classes=["a", "b", "c", "d"])
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", images.split(32))
    weights = sum(p.numel() for name, p in network.module.named_parameters() if p.ndim > 1)
    assert weight_bits(tmp_path / "int8.onnx")["INT8"] >= weights
    assert "INT8" not in weight_bits(tmp_path / "float.onnx")
    model = OnnxNetwork(tmp_path / "int8.onnx")
    with torch.no_grad():
        expected = network(images)
    for count in (1, 64):  # any batch size
        error = (model(images[:count]) - expected[:count]).abs().max()
        assert 0 < error < 0.1 * expected.abs().max()
    metadata = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "int8.onnx")).metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "b", "c", "d"]
    assert set(metadata) == {"classes", "image_shape"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]


def test_calibration_stays_in_float32(network: Tapped, tmp_path: Path) -> None:
    export_onnx(network, (1, 8, 8), tmp_path / "float.onnx", calibration=CALIBRATION)
    quantise_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", [torch.rand(32, 1, 8, 8)])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    logits, probabilities, in_set = session.run(None, {"pixels": torch.rand(5, 1, 8, 8).numpy()})
    expected = CALIBRATION.probabilities(torch.from_numpy(logits))
    torch.testing.assert_close(torch.from_numpy(probabilities), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.from_numpy(in_set), CALIBRATION.in_set(torch.from_numpy(logits)))


def test_what_cannot_be_quantised_is_an_error_and_the_old_file_stays(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    (tmp_path / "old.onnx").write_bytes(b"old")
    with refused("damaged.onnx", "cannot be quantised to INT8"):
        quantise_onnx(tmp_path / "damaged.onnx", tmp_path / "old.onnx", [torch.rand(2, 1, 8, 8)])
    assert (tmp_path / "old.onnx").read_bytes() == b"old"
    with refused("onnxruntime cannot open", "damaged.onnx"):
        OnnxNetwork(tmp_path / "damaged.onnx")


def test_trained_network_keeps_its_accuracy(tmp_path: Path) -> None:
    data = open_data("digits")
    result = tutelage.train("resnet8", "digits", epochs=3, device="cpu")
    task = find_task("classification")
    comparison = export_int8(result.model, data, task, tmp_path / "new" / "int8.onnx", classes=data.classes)
    logits = predict(result.model, data.test, device="cpu")
    assert comparison.float32.score == pytest.approx(float(accuracy(logits, data.test.labels)), abs=0.005)
    assert comparison.int8.score > comparison.float32.score - 0.03
    int8 = predict(OnnxNetwork(tmp_path / "new" / "int8.onnx"), data.test, device="cpu")
    assert comparison.int8.score == pytest.approx(float(accuracy(int8, data.test.labels)), abs=1e-6)
    assert comparison.int8.size == (tmp_path / "new" / "int8.onnx").stat().st_size < 0.5 * comparison.float32.size
    assert comparison.int8.latency > 0
    assert comparison.calibrated_on == 512


def test_text_of_the_comparison() -> None:
    task = find_task("classification")
    text = Comparison(Measured(0.5, 2_500_000, 1.5), Measured(0.51, 12_000, 2.5), 512).text(task)
    assert "test accuracy 50.00% (float32: 51.00%)" in text
    assert "size 2.50 MB (12.0 kB); latency of one sample 1.5 ms (2.5 ms)" in text
    unknown = Measured(float("nan"), 1, 1.0)
    assert "not checked, since no test sample has a label" in Comparison(unknown, unknown, 3).text(task)
