"""``tutelage predict`` for tasks whose predictions are lines of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tutelage
from tutelage.data import Data, Grades, MultiLabel, Quantities, Strings, open_data
from tutelage.evaluation.predict import predict
from tutelage.runs.models import open_model

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 4, "device": "cpu", "precision": "float32"}
ON_CPU: dict[str, Any] = {"device": "cpu", "workers": 0}

pytestmark = pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")


def test_texts_are_classified(tmp_path: Path, run: Any, refused: Any) -> None:
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    from tutelage.data.formats.text import make_tokenizer

    lines = [f"{label}\ta {label} {noun} indeed" for label in ("fine", "dull") for noun in ("film", "book", "song")]
    (tmp_path / "reviews").mkdir()
    for name in ("train", "test"):
        (tmp_path / "reviews" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    make_tokenizer(tmp_path / "reviews", size=60)
    tutelage.train("textcnn-1-8", "text:reviews", out=tmp_path / "run", **SHORT | {"epochs": 4})
    (tmp_path / "new.txt").write_text("a fine film indeed\n\n  a dull book indeed that is much longer than any other\n")
    code, output, err = run("predict", "run", "new.txt", "--top", "2", "--json")
    assert code == 0, err
    rows = json.loads(output)
    assert [row["text"][:11] for row in rows] == ["a fine film", "a dull book"]
    data = open_data("text:reviews")
    logits = predict(open_model("run", data), data.test, device="cpu")
    first = logits[0].softmax(0)
    assert rows[0]["class"] == data.classes[int(first.argmax())]
    assert rows[0]["probability"] == pytest.approx(float(first.max()), abs=1e-5)
    assert rows[0]["probability"] + rows[0]["probability_2"] == pytest.approx(1, abs=1e-5)
    table = tutelage.predict_files("run", "reviews/test.tsv", **ON_CPU)  # without its labels
    assert [row["text"] for row in table.rows] == [line.split("\t")[1] for line in lines]
    assert [row["class"] for row in table.rows] == [data.classes[number] for number in logits.argmax(1).tolist()]
    _, output, _ = run("predict", "run", "new.txt")
    assert output.splitlines()[0] == f"a fine film indeed  {rows[0]['class']} {100 * rows[0]['probability']:.1f} %"
    (tmp_path / "reviews").rename(tmp_path / "moved")
    with refused("the tokenizer of run was in reviews", "--tokenizer"):
        tutelage.predict_files("run", "new.txt", **ON_CPU)
    again = tutelage.predict_files("run", "new.txt", tokenizer="moved", **ON_CPU)
    assert again.rows[0]["class"] == rows[0]["class"]
    (tmp_path / "moved" / "train.tsv").write_text("other\twords that make another tokenizer\n" * 3)
    make_tokenizer(tmp_path / "moved", size=40)
    with refused("was trained on texts of another tokenizer"):
        tutelage.predict_files("run", "new.txt", tokenizer="moved", **ON_CPU)
    with refused("there is no text file", "nowhere.txt"):
        tutelage.predict_files("run", "nowhere.txt", tokenizer="moved", **ON_CPU)


def kinds() -> dict[str, tuple[Any, torch.Tensor, tuple[str, ...]]]:
    """Targets of each further kind, the labels of twelve images and their names."""
    numbers = torch.arange(12)
    return {
        "regression": (Quantities(), torch.stack([numbers / 6, 1 - numbers / 6], 1).float(), ("height", "weight")),
        "multi_label": (MultiLabel(), torch.stack([numbers % 2, numbers // 6], 1), ("odd", "late")),
        "ordinal": (Grades(), numbers % 3, ("none", "some", "much")),
    }


@pytest.mark.parametrize("task", ["regression", "multi_label", "ordinal"])
def test_other_tasks_write_a_table(task: str, tmp_path: Path, run: Any) -> None:
    targets, labels, names = kinds()[task]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 8, 8, 3), generator=generator, dtype=torch.uint8)
    pair = images, labels
    data = Data.from_arrays(pair, pair, classes=names, targets=targets)
    result = tutelage.train("resnet8x0.25", data, out=tmp_path / "run", **SHORT)
    for number, image in enumerate(images[:5]):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(5)]
    code, output, err = run("predict", "resnet8x0.25@run/student.safetensors", *files, "--json", "--device", "cpu")
    assert code == 0, err
    rows = json.loads(output)
    logits = predict(result.model, data.test, device="cpu")[:5]
    assert [row["file"] for row in rows] == files
    for row, outputs in zip(rows, logits, strict=True):
        if task == "regression":
            assert [row[name] for name in names] == pytest.approx(outputs.tolist(), abs=1e-4)
        elif task == "multi_label":
            assert row["labels"] == [name for name, value in zip(names, outputs.tolist(), strict=True) if value > 0]
            assert row["probability of late"] == pytest.approx(float(outputs[1].sigmoid()), abs=1e-4)
        else:
            grade = round(float(outputs.softmax(0) @ torch.arange(3.0)))
            assert row["class"] == names[grade]
            assert row["probability"] == pytest.approx(float(outputs.softmax(0)[grade]), abs=1e-4)
    _, output, _ = run("predict", "resnet8x0.25@run/student.safetensors", files[0], "--device", "cpu")
    assert output.startswith(f"{files[0]}  ")


class Reader(torch.nn.Module):
    """Logits (B, 2, 3) of strings of two symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.mean((2, 3))).view(-1, 2, 3)
        return logits


def test_strings_are_joined_symbols(tmp_path: Path) -> None:
    images = torch.randint(256, (6, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.tensor([[0, 1], [1, 2], [2, 0]] * 2)
    data = Data.from_arrays((images, labels), (images, labels), classes=("x", "y", "z"), targets=Strings())
    result = tutelage.train(Reader(), data, out=tmp_path / "run", **SHORT)
    Image.fromarray(images[3].numpy()).save(tmp_path / "3.png")
    spec = f"{__name__}:Reader@{tmp_path / 'run' / 'student.safetensors'}"
    (row,) = tutelage.predict_files(spec, tmp_path / "3.png", trust=True, **ON_CPU).rows
    log_probs = predict(result.model, data.test, device="cpu")[3].log_softmax(1)
    assert row["string"] == "".join("xyz"[number] for number in log_probs.argmax(1).tolist())
    assert row["probability"] == pytest.approx(float(log_probs.max(1).values.sum().exp()), abs=1e-5)


def test_tasks_without_a_prediction_of_a_sample_say_so(tmp_path: Path, refused: Any) -> None:
    tutelage.train(
        "resnet8x0.25", "digits", method="triplets", out=tmp_path / "run", per_class=8, **SHORT | {"batch_size": 16}
    )
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with refused("clustering predicts nothing for a single sample"):
        tutelage.predict_files(tmp_path / "run", tmp_path / "a.png", **ON_CPU)


def test_classes_are_a_table_without_files(teacher: Path, tmp_path: Path, refused: Any) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with refused("predictions for classification are a table without files; leave out --out"):
        tutelage.predict_files(teacher, tmp_path / "a.png", out=tmp_path / "out", **ON_CPU)
    with refused("the tokenizer x is for texts"):
        tutelage.predict_files(teacher, tmp_path / "a.png", tokenizer="x", **ON_CPU)
    rows = tutelage.predict_files(teacher, tmp_path / "a.png", top=3, **ON_CPU).rows
    assert [*rows] == [*tutelage.predict_images(teacher, tmp_path / "a.png", **ON_CPU).rows(3)]
