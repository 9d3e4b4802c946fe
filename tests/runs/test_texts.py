"""Runs on texts: methods on our text networks, tokenizers in weights files, the run page and export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tutelage.data import open_data
from tutelage.models.weights import read_metadata
from tutelage.report.run import write_run_page
from tutelage.runs.models import open_model

pytest.importorskip("tokenizers")

SUBJECTS = ("film", "book", "song", "play")
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "device": "cpu", "precision": "float32", "optimizer": "AdamW"}


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A folder of reviews whose words tell the label, with a tokenizer."""
    return write_texts(tmp_path / "reviews", "a {} {}")


def write_texts(folder: Path, pattern: str) -> str:
    from tutelage.data.formats.text import make_tokenizer

    folder.mkdir()
    words = {"good": ("fine", "great", "lovely"), "bad": ("dull", "poor", "awful")}
    lines = [
        f"{label}\t{pattern.format(word, subject)}{' indeed' * (number % 3)}"
        for label, adjectives in words.items()
        for number, (word, subject) in enumerate((word, subject) for word in adjectives for subject in SUBJECTS)
    ]
    for name in ("train", "val", "test"):
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    make_tokenizer(folder, size=80)
    return f"text:{folder}"


@pytest.fixture
def teacher(texts: str, tmp_path: Path) -> str:
    tutelage.train("texttransformer-2-16", texts, out=tmp_path / "teacher", **SHORT | {"epochs": 12, "lr": 0.01})
    return str(tmp_path / "teacher")


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("hinton", {}),
    ("fitnet", {"mode": "joint"}),
    ("fitnet", {}),
    ("at", {}),
    ("sp", {}),
    ("rkd", {}),
    ("dml", {}),
    ("mean_teacher_lc", {}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("student", ["textcnn-2-8", "texttransformer-1-8"])
def test_methods_train_on_texts(student: str, teacher: str, texts: str) -> None:
    for method, settings in METHODS:
        result = tutelage.distill(teacher, student, texts, method=method, settings=settings, **SHORT)
        assert len(result.history) >= 2
        assert all(torch.isfinite(p).all() for p in result.model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_flow_between_tokens_is_refused(teacher: str, texts: str, refused: Any) -> None:
    with refused("pass tokens (B, T, D) as maps"):
        tutelage.distill(teacher, "textcnn-2-8", texts, method="fsp", **SHORT)


def test_weights_are_refused_for_texts_of_another_tokenizer(texts: str, tmp_path: Path, refused: Any) -> None:
    tutelage.train("textcnn-1-8", texts, out=tmp_path / "run", **SHORT)
    data = open_data(texts)
    assert read_metadata(tmp_path / "run" / "student.safetensors")["encoding"] == data.modality.encoding != ""
    open_model(str(tmp_path / "run"), data)
    other = open_data(write_texts(tmp_path / "others", "that {} {} again"))
    with refused("was trained on texts of another tokenizer", "use one tokenizer for both"):
        open_model(str(tmp_path / "run"), other)


def test_run_page_lists_the_texts_of_mistakes(texts: str, tmp_path: Path) -> None:
    folder = Path(texts.removeprefix("text:"))
    lines = (folder / "test.tsv").read_text().splitlines()
    lines[0] = f"bad\tlovely <b>film</b> {'indeed ' * 100}"
    (folder / "test.tsv").write_text("\n".join(lines))
    tutelage.train("textcnn-1-16", texts, out=tmp_path / "run", **SHORT | {"epochs": 8, "lr": 0.02})
    page = write_run_page(tmp_path / "run", device="cpu").read_text()
    (name,) = re.findall(r'<p class="text">(lovely .*?)</p>', page)
    assert name.startswith("lovely &lt;b&gt;film&lt;/b&gt; indeed indeed")
    assert name.endswith("…")
    assert len(name) < 430
    assert 'class="samples texts"' in page


@pytest.mark.parametrize("student", ["textcnn-1-8", "texttransformer-1-8"])
def test_exported_network_gives_the_same_logits(student: str, texts: str, tmp_path: Path, run: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = tutelage.train(student, texts, out=tmp_path / "run", **SHORT)
    code, _, err = run("export", str(tmp_path / "run"), "--onnx", str(tmp_path / "net.onnx"))
    assert code == 0, err
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert session.get_inputs()[0].name == "tokens"
    tokens = open_data(texts).test.inputs[torch.arange(5)]
    (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), result.model.eval()(tokens), rtol=1e-4, atol=1e-5)
