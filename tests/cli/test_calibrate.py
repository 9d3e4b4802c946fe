"""``tutelage calibrate`` and ``tutelage.calibrate``; what predict, evaluate and export make of a calibration."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tutelage
from tutelage.config import Config
from tutelage.data import Data, open_data
from tutelage.data.configured import load_data
from tutelage.errors import TutelageWarning
from tutelage.evaluation.calibration import fit_temperature
from tutelage.evaluation.predict import predict
from tutelage.models.weights import read_metadata, read_state
from tutelage.runs import execute
from tutelage.runs.header import read_header
from tutelage.runs.models import open_model, open_trained

Run = Callable[..., Any]
Refused = Callable[..., Any]


@pytest.fixture
def finished(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(teacher, tmp_path / "run"))


def test_calibration_is_that_of_the_held_out_samples_of_the_run(finished: Path) -> None:
    state, metadata = read_state(finished / "student.safetensors")
    calibrated = tutelage.calibrate(finished, coverage=0.8, device="cpu")
    data = load_data(Config(data="digits", student="resnet8", epochs=2))
    assert data.validation is not None
    model = open_model(str(finished), data)
    logits = predict(model, data.validation, device="cpu")
    assert calibrated.calibration.temperature == fit_temperature(logits, data.validation.labels)
    assert calibrated.calibration.samples == len(data.validation)
    assert calibrated.after["nll"] < calibrated.before["nll"]
    test_logits = predict(model, data.test, device="cpu")
    members = calibrated.calibration.in_set(test_logits)
    assert calibrated.after["coverage"] == pytest.approx(
        float(members.gather(1, data.test.labels[:, None]).float().mean())
    )
    # Only the header of the weights file has changed, and the run is still intact.
    new_state, new_metadata = read_state(finished / "student.safetensors")
    assert new_metadata == metadata | {"calibration": calibrated.calibration.model_dump()}
    assert all(torch.equal(value, new_state[key]) for key, value in state.items())
    assert read_header(finished / "student.safetensors").calibration == calibrated.calibration
    result = json.loads((finished / "result.json").read_text())
    assert result["calibration"]["temperature"] == calibrated.calibration.temperature
    execute(Config(data="digits", student="resnet8", epochs=2), finished)  # reads the finished run


def test_calibrating_again_replaces_the_calibration(finished: Path, run: Run) -> None:
    first = tutelage.calibrate(finished, device="cpu").calibration
    code, out, _ = run("calibrate", str(finished), "--coverage", "0.95", "--sets", "aps", "--device", "cpu", "--json")
    assert code == 0
    second = json.loads(out)["calibration"]
    assert second["temperature"] == first.temperature
    assert (second["coverage"], second["sets"]) == (0.95, "aps")
    assert read_metadata(finished / "student.safetensors")["calibration"] == second
    assert open_trained(str(finished), open_data("digits")).calibration is not None


@pytest.mark.parametrize("moment", ["before the result", "between the files"])
def test_a_run_is_intact_if_the_process_is_killed_between_the_files(
    moment: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.runs.folder import RunFolder

    for _ in range(2):  # the second time on a calibrated run
        with monkeypatch.context() as patch:

            def stop(self: Any, *args: Any) -> None:
                raise KeyboardInterrupt

            if moment == "before the result":
                patch.setattr(RunFolder, "write_result", stop)
            else:
                write = RunFolder.write_result

                def result_then_stop(self: RunFolder, result: Any, write: Any = write) -> None:
                    write(self, result)
                    raise KeyboardInterrupt

                patch.setattr(RunFolder, "write_result", result_then_stop)
            with pytest.raises(KeyboardInterrupt):
                tutelage.calibrate(finished, device="cpu")
        read_header(finished / "student.safetensors")  # it is that of the run
        tutelage.calibrate(finished, coverage=0.7, device="cpu")


def test_predict_lists_calibrated_probabilities_and_sets(finished: Path, run: Run, tmp_path: Path) -> None:
    pixels = open_data("digits").test.inputs
    assert isinstance(pixels, torch.Tensor)
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.fromarray(pixels[number, :, :, 0].numpy()).save(tmp_path / "images" / f"{number}.png")
    calibration = tutelage.calibrate(finished, coverage=0.95, device="cpu").calibration
    predictions = tutelage.predict_images(finished, tmp_path / "images", device="cpu", workers=0)
    data = open_data("digits")
    logits = predict(open_model(str(finished), data), data.test, device="cpu")[:8]
    torch.testing.assert_close(predictions.probabilities, (logits / calibration.temperature).softmax(1))
    assert predictions.in_set is not None
    assert torch.equal(predictions.in_set, calibration.in_set(logits))
    _, out, err = run("predict", str(finished), str(tmp_path / "images"), "--device", "cpu")
    assert all(line.endswith("}") for line in out.splitlines())
    assert "contains the true class with probability 95% or more" in " ".join(err.split())
    run("predict", str(finished), str(tmp_path / "images"), "--csv", str(tmp_path / "p.csv"), "--device", "cpu")
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row, members in zip(rows, predictions.in_set, strict=True):
        names = row["set"].split("|")
        assert len(names) == int(members.sum())
        assert names[0] == row["class"]


def test_evaluate_reports_calibrated_metrics(finished: Path, run: Run) -> None:
    calibrated = tutelage.calibrate(finished, device="cpu")
    result = json.loads(run("evaluate", str(finished), "--device", "cpu", "--json")[1])
    assert result["calibrated"] == calibrated.after
    assert result["nll"] == pytest.approx(calibrated.before["nll"])
    _, out, _ = run("evaluate", str(finished), "--device", "cpu")
    assert "calibrated nll" in out
    assert "precision by class" in out


def test_exported_probabilities_are_calibrated(finished: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    for sets in ("lac", "aps"):
        calibration = tutelage.calibrate(finished, sets=sets, device="cpu").calibration  # type: ignore[arg-type]
        code, out, _ = run("export", str(finished), "--onnx", str(tmp_path / "s.onnx"))
        assert code == 0
        assert f"temperature = {calibration.temperature}" in out
        session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_outputs()] == ["logits", "probabilities", "in_set"]
        pixels = torch.rand(5, 1, 8, 8)
        logits, probabilities, in_set = map(torch.from_numpy, session.run(None, {"pixels": pixels.numpy()}))
        expected = open_model(str(finished), open_data("digits"))(pixels).detach()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(probabilities, calibration.probabilities(expected), rtol=1e-4, atol=1e-4)
        assert torch.equal(in_set, calibration.in_set(logits))
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["calibration"]) == calibration.model_dump()


def test_loading_script_has_the_temperature(finished: Path) -> None:
    calibration = tutelage.calibrate(finished, device="cpu").calibration
    code = "import runpy; print(runpy.run_path('load.py')['temperature'])"
    process = subprocess.run([sys.executable, "-c", code], cwd=finished, capture_output=True, text=True, check=True)
    assert float(process.stdout) == calibration.temperature


def test_a_run_that_cannot_be_calibrated_is_refused_in_one_line(
    finished: Path, run: Run, tmp_path: Path, tiny_npz: str, tiny_data: Data, refused: Refused
) -> None:
    with refused("is not the folder of a finished run"):
        tutelage.calibrate(tmp_path)
    with refused("coverage 0.999 need 999 held-out samples with labels"):
        tutelage.calibrate(finished, coverage=0.999, device="cpu")
    assert "lac or aps" in run("calibrate", str(finished), "--sets", "raps")[2]
    short: dict[str, Any] = {"epochs": 1, "device": "cpu", "workers": 0}
    execute(Config(data="digits", per_class=10, student="resnet8x0.25", validation=0, **short), tmp_path / "all")
    with refused("held out no samples (validation 0)", "--validation 0.1"):
        tutelage.calibrate(tmp_path / "all")
    tutelage.train("resnet8x0.25", tiny_data, out=tmp_path / "object", **short)
    with refused("was an object in a Python program", "tutelage.calibrate("):
        tutelage.calibrate(tmp_path / "object")
    with refused("is not what", "was trained on"):
        tutelage.calibrate(tmp_path / "object", open_data("digits"))
    assert tutelage.calibrate(tmp_path / "object", tiny_data, coverage=0.5).calibration.samples == 16


def test_wrong_held_out_labels_give_a_warning(tmp_path: Path) -> None:
    config = Config(data="digits", noise="0.4", student="resnet8x0.25", epochs=1, device="cpu", workers=0)
    execute(config, tmp_path / "noisy")
    with pytest.warns(TutelageWarning, match=r"\d+ of 144 held-out labels of .* are wrong"):
        tutelage.calibrate(tmp_path / "noisy", device="cpu")
