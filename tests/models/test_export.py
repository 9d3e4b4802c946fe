"""ONNX export: equal logits in onnxruntime, metadata and errors."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.models.export import export_onnx
from tutelage.models.surgery import mask, quantise
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build


def needs_onnx() -> Any:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    return pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.fixture
def trained_network(tiny_model: Callable[..., Tapped]) -> Tapped:
    """In train mode, with dropout and updated running statistics."""
    model = tiny_model(dropout=0.5)
    model(torch.rand(16, 1, 8, 8))
    return model


def test_onnxruntime_logits_equal_torch_for_any_batch_size(
    trained_network: Tapped, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    onnxruntime = needs_onnx()
    before, path = state_of(trained_network), tmp_path / "new folder" / "student.onnx"
    level, random = logging.root.manager.disable, torch.get_rng_state()
    export_onnx(trained_network, (1, 8, 8), path)

    assert list(path.parent.iterdir()) == [path]
    assert all(module.training for module in trained_network.modules())
    assert changed(before, state_of(trained_network)) == set()
    assert logging.root.manager.disable == level
    assert torch.equal(torch.get_rng_state(), random)

    other_file = tmp_path / "elsewhere.onnx"  # the file needs no other file
    path.rename(other_file)
    session = onnxruntime.InferenceSession(str(other_file), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["pixels"]
    assert [value.name for value in session.get_outputs()] == ["logits"]
    trained_network.eval()
    for batch in (1, 5):
        pixels = torch.rand(batch, 1, 8, 8)
        (logits,) = session.run(None, {"pixels": pixels.numpy()})
        assert logits.shape == (batch, 4)
        torch.testing.assert_close(torch.from_numpy(logits), trained_network(pixels).detach(), rtol=1e-5, atol=1e-5)


def test_logit_maps_are_exported(tmp_path: Path) -> None:
    onnxruntime, path = needs_onnx(), tmp_path / "student.onnx"
    network = build("fpn-10-0.25", num_classes=3, input_shape=(3, 20, 24))
    model = Tapped(network, (0.5,), (0.25,)).eval()
    export_onnx(model, (3, 20, 24), path, classes=("a", "b", "c"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = torch.rand(3, 3, 20, 24)
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    assert logits.shape == (3, 3, 20, 24)
    torch.testing.assert_close(torch.from_numpy(logits), model(pixels).detach(), rtol=1e-4, atol=1e-5)


def test_metadata_has_classes_and_shape_and_the_batch_is_dynamic(trained_network: Tapped, tmp_path: Path) -> None:
    onnxruntime = needs_onnx()
    export_onnx(trained_network, (1, 8, 8), tmp_path / "s.onnx", classes=["a", "é", "c", "d"])
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["a", "é", "c", "d"]
    assert json.loads(metadata["image_shape"]) == [1, 8, 8]
    batch, *size = session.get_inputs()[0].shape
    assert isinstance(batch, str)
    assert size == [1, 8, 8]


def test_without_the_extra_the_error_names_the_command(
    trained_network: Tapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with refused("pip install 'tutelage[onnx]'"):
        export_onnx(trained_network, (1, 8, 8), tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_raises_and_writes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Any
) -> None:
    needs_onnx()

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * len(set(x.flatten().tolist()))

    with refused("Counting cannot be exported to ONNX: ", "data-dependent"):  # the cause, not torch's advice
        export_onnx(Tapped(Counting()), (1, 2, 2), tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("operation", ["mask", "quantise"])
def test_file_holds_the_weights_that_a_layer_computes_instead_of_the_computation(
    operation: str, tmp_path: Path
) -> None:
    onnxruntime, example = needs_onnx(), torch.rand(3, 3, 16, 16)
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    network, plain = (build("resnet8", num_classes=10, input_shape=(3, 16, 16)).eval() for _ in range(2))
    if operation == "mask":
        mask.apply(network, example, layer="layer1.0.conv1", outputs=[8, 8], inputs=[16], keep=[1, 0])
    else:
        quantise.apply(network, example, bits=3)
    for model, name in ((network, operation), (plain, "plain")):
        export_onnx(Tapped(model), (3, 16, 16), tmp_path / name)
    nodes = [[node.op_type for node in onnx.load(str(tmp_path / name)).graph.node] for name in (operation, "plain")]
    assert nodes[0] == nodes[1]
    assert (tmp_path / operation).stat().st_size < 1.05 * (tmp_path / "plain").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / operation), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": example.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(example).detach(), rtol=1e-5, atol=1e-5)
