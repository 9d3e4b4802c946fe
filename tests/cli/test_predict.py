"""``tutelage predict`` and ``tutelage.predict_images``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tutelage
from tutelage.data import open_data
from tutelage.evaluation.predict import predict
from tutelage.models.weights import save_weights
from tutelage.runs.models import open_model

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve test digits: four as grey PNG files, four in a sub-folder, four as colour images of twice the size."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    pixels = open_data("digits").test.inputs
    assert isinstance(pixels, torch.Tensor)
    for number in range(12):
        image = Image.fromarray(pixels[number, :, :, 0].numpy())
        if number >= 8:
            image = image.resize((16, 16), Image.Resampling.NEAREST).convert("RGB")
        image.save(folder / ("more" if 4 <= number < 8 else "") / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def expected(teacher: Path) -> torch.Tensor:
    """(12, 10) probabilities of the test digits by the library's own prediction."""
    data = open_data("digits")
    return predict(open_model(str(teacher), data), data.test, device="cpu").softmax(1)[:12]


def numbers(predictions: tutelage.Predictions) -> list[int]:
    return [int(file.stem) for file in predictions.files]


def test_probabilities_are_those_of_the_network_on_the_same_pixels(
    teacher: Path, images: Path, expected: torch.Tensor
) -> None:
    predictions = tutelage.predict_images(teacher, images, device="cpu", workers=0)
    assert sorted(numbers(predictions)) == list(range(12))
    assert predictions.classes == open_data("digits").classes
    same_size = [row for row, number in enumerate(numbers(predictions)) if number < 8]
    torch.testing.assert_close(
        predictions.probabilities[same_size], expected[[numbers(predictions)[row] for row in same_size]]
    )
    torch.testing.assert_close(predictions.probabilities.sum(1), torch.ones(12))


def test_images_of_another_size_and_mode_are_converted(teacher: Path, images: Path, expected: torch.Tensor) -> None:
    """Twice the size by repeated pixels: scaled down again they are nearly the same image."""
    predictions = tutelage.predict_images(teacher, [images / f"{n:02d}.png" for n in range(8, 12)], device="cpu")
    assert numbers(predictions) == [8, 9, 10, 11]
    assert predictions.probabilities.argmax(1).tolist() == expected[8:].argmax(1).tolist()


def test_table_lists_the_most_probable_classes(run: Run, teacher: Path, images: Path, expected: torch.Tensor) -> None:
    _, output, _ = run("predict", str(teacher), str(images / "00.png"), "--top", "2", "--device", "cpu")
    best, second = expected[0].topk(2).indices.tolist()
    values = expected[0]
    line = f"{images / '00.png'}  {best} {100 * values[best]:.1f} %  {second} {100 * values[second]:.1f} %"
    assert output.splitlines() == [line]


def test_csv_and_json_have_one_row_per_image(run: Run, teacher: Path, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    _, output, _ = run("predict", str(teacher), str(images), "--csv", str(table), "--top", "2")
    assert output.split() == [str(table)]
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["file", "class", "probability", "class_2", "probability_2"]
    listed = json.loads(run("predict", str(teacher), str(images), "--json", "--top", "2")[1])
    assert [row["file"] for row in rows] == [row["file"] for row in listed]
    assert [row["class"] for row in rows] == [row["class"] for row in listed]
    assert len(rows) == 12


def test_name_that_looks_like_a_formula_is_quoted(teacher: Path, images: Path, tmp_path: Path) -> None:
    predictions = tutelage.predict_images(teacher, images / "00.png", device="cpu")
    renamed = tutelage.Predictions((Path("=1+1"),), predictions.classes, predictions.probabilities)
    renamed.save(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines()[1].startswith("'=1+1,")


def test_unreadable_images_are_refused_or_left_out(
    run: Run, teacher: Path, images: Path, tmp_path: Path, refused: Any
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes((images / "00.png").read_bytes()[:40])
    with refused(str(bad)):
        tutelage.predict_images(teacher, [images / "00.png", bad], device="cpu", workers=0)
    _, output, errors = run("predict", str(teacher), str(images / "00.png"), str(bad), "--skip-bad")
    assert len(output.splitlines()) == 1
    assert f"1 images cannot be read and are left out, first {bad}" in " ".join(errors.split())
    with refused("none of the 1 images can be read"):
        tutelage.predict_images(teacher, bad, skip_bad=True)


def test_weights_without_class_names_need_them(teacher: Path, images: Path, tmp_path: Path, refused: Any) -> None:
    data = open_data("digits")
    network = open_model(str(teacher), data)
    save_weights(tmp_path / "bare.safetensors", network.module, {})
    spec = f"resnet8@{tmp_path / 'bare.safetensors'}"
    with refused("records no class names", "--classes"):
        tutelage.predict_images(spec, images, image_size=8)


def test_weights_without_a_header_take_the_channels_of_their_first_layer(
    teacher: Path, images: Path, tmp_path: Path, expected: torch.Tensor
) -> None:
    data = open_data("digits")
    network = open_model(str(teacher), data)
    torch.save(network.module.state_dict(), tmp_path / "grey.pt")
    spec, mean_std = (
        f"resnet8@{tmp_path / 'grey.pt'}",
        (network.mean.flatten().tolist(), network.std.flatten().tolist()),
    )
    options: dict[str, Any] = {"classes": data.classes, "mean_std": mean_std, "device": "cpu", "workers": 0}
    files = [images / f"{number:02d}.png" for number in range(4)]
    predictions = tutelage.predict_images(spec, files, image_size=8, **options)
    torch.testing.assert_close(predictions.probabilities, expected[:4])
    with pytest.warns(tutelage.TutelageWarning, match="records no image size, so images are scaled to 224 pixels"):
        tutelage.predict_images(spec, files[:1], **options)


def test_missing_paths_and_other_inputs_are_refused(teacher: Path, tmp_path: Path, refused: Any) -> None:
    with refused("there is no image or folder", "nowhere.png"):
        tutelage.predict_images(teacher, tmp_path / "nowhere.png")
    with refused("has no image", str(tmp_path)):
        tutelage.predict_images(teacher, tmp_path)
    with refused("no image is given"):
        tutelage.predict_images(teacher, [])
    with refused("no trained network"):
        tutelage.predict_images(str(tmp_path / "run"), tmp_path)
