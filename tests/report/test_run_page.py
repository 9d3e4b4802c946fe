"""The page of a run: its numbers, its worst mistakes, and result files with other content."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.report.pages import HOSTILE
from tutelage.config import Config
from tutelage.data import Data, Split, open_data
from tutelage.evaluation.predict import predict
from tutelage.models.weights import encode_weights, read_state
from tutelage.report.run import write_run_page
from tutelage.report.run.mistakes import worst_mistakes
from tutelage.runs import execute
from tutelage.runs.calibrate import calibrate
from tutelage.runs.models import open_model
from tutelage.runs.run_data import open_run_data
from tutelage.tasks import Drawing, Task, find_task

Refused = Callable[..., Any]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as image files in three classes, one of which has a name of markup; no test part."""
    folder = tmp_path_factory.mktemp("photos")
    data = open_data("digits").train
    assert isinstance(data.inputs, torch.Tensor)
    for label, name in enumerate(("five & six", "<b>four", "zero")):
        (folder / name).mkdir()
        for number, row in enumerate((data.labels == label).nonzero()[:30, 0].tolist()):
            Image.fromarray(data.inputs[row, :, :, 0].numpy()).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fields: dict[str, Any] = {"student": "resnet8x0.25", "epochs": 3, "device": "cpu", "workers": 0, "batch_size": 16}
    execute(Config(data=f"folder:{photos}", test=0.4, validation=0.2, **fields), folder)
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


pytestmark = pytest.mark.filterwarnings("ignore:.*has no test split")


def test_mistakes_are_the_most_confident_wrong_predictions(finished: Path, photos: Path) -> None:
    data = open_data(f"folder:{photos}", test=0.4)
    logits = predict(open_model(str(finished), data), data.test, device="cpu")
    probabilities, labels = logits.softmax(1), data.test.labels
    wrong = [row for row in range(len(labels)) if int(logits[row].argmax()) != int(labels[row])]
    assert wrong, "the test needs mistakes"
    mistakes = worst_mistakes(str(finished), device="cpu")
    assert mistakes.count == len(wrong)
    assert mistakes.samples == len(labels)
    expected = sorted((float(probabilities[row].max()) for row in wrong), reverse=True)[:24]
    assert [one.probability for one in mistakes.listed] == pytest.approx(expected)
    for one in mistakes.listed:
        assert one.probability > one.label_probability
        assert one.label != one.predicted
        assert Path(one.name).parent.name == one.label  # the file of this very sample, and its pixels
        decoded = Image.open(io.BytesIO(base64.b64decode(one.image.partition(",")[2])))
        assert decoded.resize((8, 8), Image.Resampling.NEAREST).tobytes() == Image.open(one.name).tobytes()


def test_page_has_drawings_of_the_task_instead_of_mistakes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawings(self: Task, model: Any, split: Split, data: Data, compute: Any) -> list[Drawing]:
        logits = predict(model, split, device=compute.device)
        pixels = torch.zeros(300, 900, 3, dtype=torch.uint8)
        pixels[:, 450:, 0] = 255
        return [Drawing(pixels, f"<i>{len(logits)} of {len(split)}")]

    monkeypatch.setattr(type(find_task("classification")), "drawings", drawings)
    text = write_run_page(finished, device="cpu").read_text()
    (uri,) = re.findall(r'<img src="(data:image/png;base64,[^"]*)"', text)
    drawing = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert drawing.size == (720, 240)
    assert drawing.getpixel((0, 0)) == (0, 0, 0)
    assert drawing.getpixel((719, 239)) == (255, 0, 0)
    samples = len(open_run_data(str(finished)).test)
    assert f"<figcaption>{html.escape(f'<i>{samples} of {samples}')}</figcaption>" in text
    assert "Worst mistakes" not in text
    monkeypatch.setattr(type(find_task("classification")), "drawings", lambda *_: [])
    assert (
        "Not shown: the task classification drew no test sample" in write_run_page(finished, device="cpu").read_text()
    )


def test_page_has_the_numbers_of_the_result_and_escapes_names(finished: Path) -> None:
    path = write_run_page(finished, device="cpu")
    text = path.read_text()
    assert path == finished / "report.html"
    result = json.loads((finished / "result.json").read_text())
    assert f"{result['test']['accuracy']:.2%}" in text
    assert "<b>four" not in text
    assert html.escape("<b>four") in text
    rows = dict(re.findall(r'<tr><th scope="row">([^<]*)</th>(?:<td>[\d,]+</td>)<td>([\d.]+|&ndash;)</td>', text))
    assert {html.unescape(name): value for name, value in rows.items()} == {
        name: f"{100 * value:.1f}" for name, value in result["test"]["per_class_accuracy"].items()
    }
    counts = [count for row in result["test"]["confusion"] for count in row if count]
    assert [int(count) for count in re.findall(r"--share: \d+%\">(\d+)</td>", text)] == counts
    assert "<svg" in text
    assert text.count('<figure class="sample">') == len(worst_mistakes(str(finished), device="cpu").listed)


def test_page_needs_no_other_file_and_no_script(finished: Path) -> None:
    text = write_run_page(finished, device="cpu").read_text()
    assert "default-src 'none'" in html.unescape(text)
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:image/png|#)', text)


def test_page_of_a_calibrated_run(finished: Path) -> None:
    calibration = calibrate(finished, coverage=0.6, device="cpu").calibration
    text = write_run_page(finished, device="cpu").read_text()
    assert f"temperature {calibration.temperature:.3f}, from {calibration.samples} held-out samples" in text
    assert "60.0&nbsp;% requested" in text


def test_without_its_data_the_page_has_no_mistakes_and_says_why(
    tiny_data: Data, tmp_path: Path, refused: Refused
) -> None:
    import tutelage

    tutelage.train("resnet8x0.25", tiny_data, out=tmp_path / "run", epochs=1, device="cpu", workers=0)
    text = write_run_page(tmp_path / "run", tmp_path / "page.html", device="cpu").read_text()
    assert "Not listed: " in text
    assert "does not record a data set that can be opened by name" in text
    with refused("is not the folder of a finished run"):
        write_run_page(tmp_path)


def test_code_that_a_weights_file_names_is_not_imported(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from pathlib import Path\n\nPath(__file__).with_name('it_ran').touch()\n")
    rename_model(finished, f"{tmp_path / 'net.py'}:Net")
    text = write_run_page(finished, device="cpu").read_text()
    assert "Not listed: " in text
    assert "--trust" in text
    assert not (tmp_path / "it_ran").exists()
    write_run_page(finished, device="cpu", trust=True)
    assert (tmp_path / "it_ran").exists()


def rename_model(folder: Path, spec: str) -> None:
    """Let the weights file of a run name another network."""
    state, metadata = read_state(folder / "student.safetensors")
    (folder / "student.safetensors").write_bytes(encode_weights(state, metadata | {"model": spec}, "the weights"))
    result = json.loads((folder / "result.json").read_text())
    del result["student_sha256"]
    (folder / "result.json").write_text(json.dumps(result))


def test_values_of_a_changed_result_are_text_or_refused(finished: Path, refused: Refused) -> None:
    result = json.loads((finished / "result.json").read_text())
    changed = {
        **result,
        "command": HOSTILE,
        "data": {**result["data"], "name": HOSTILE},
        "test": {**result["test"], "confusion": [[1]]},
    }
    (finished / "result.json").write_text(json.dumps(changed))
    text = write_run_page(finished, device="cpu").read_text()
    assert HOSTILE not in text
    assert html.escape(HOSTILE, quote=False)[:12] in text
    (finished / "result.json").write_text(json.dumps({**result, "calibration": {"temperature": "high"}}))
    with refused("result.json", "calibration"):
        write_run_page(finished, device="cpu")


def test_command_writes_the_page_of_a_run(run: Any, finished: Path) -> None:
    code, out, _ = run("report", str(finished))
    assert code == 0
    assert out.strip() == str(finished / "report.html")
    code, _, err = run("report", str(finished), "--format", "csv")
    assert code == 2
    assert "is a run, whose report is a page" in err
