"""The loading script runs a student in plain PyTorch with the same outputs."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tests.videos import moving_squares, write_boxes, write_frames
from tutelage.config import Config
from tutelage.data import Data, Vectors
from tutelage.data.targets.track import box_of
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_metadata
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


def test_network_for_texts_is_built_with_its_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    from tutelage.data.formats.text import make_tokenizer

    folder = tmp_path / "reviews"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.tsv").write_text("fine\ta lovely film\ndull\tan awful book\n" * 8)
    make_tokenizer(folder, size=60)
    tutelage.train("textcnn-1-8", f"text:{folder}", out=tmp_path / "run", **SHORT)
    data = tutelage.open_data(f"text:{folder}")
    script = runpy.run_path(str(tmp_path / "run" / "load.py"))
    tokens = data.test.inputs[torch.arange(4)]
    with torch.no_grad():
        assert torch.equal(script["student"](tokens), open_model(str(tmp_path / "run"), data).eval()(tokens))
    assert f"# Loads the student in plain PyTorch. Inputs: (B, {tokens.shape[1]}) int64, tokens." in (
        tmp_path / "run" / "load.py"
    ).read_text().replace("\n# ", " ")


def test_network_for_videos_is_built(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pixels, labels = moving_squares(1, 4)
        write_frames(tmp_path / "videos" / split / "A" / "img", pixels)
        write_boxes(tmp_path / "videos" / split / "A" / "groundtruth_rect.txt", box_of(labels))
    tutelage.train("siamese4", f"frames:{tmp_path / 'videos'}", out=tmp_path / "run", **SHORT | {"batch_size": 2})
    pairs = torch.rand(2, 1, 127, 190)
    with torch.no_grad():
        expected = open_model(str(tmp_path / "run"), tutelage.open_data(f"frames:{tmp_path / 'videos'}")).eval()(pairs)
        assert torch.equal(runpy.run_path(str(tmp_path / "run" / "load.py"))["student"](pairs), expected)


class Line(torch.nn.Module):
    """A linear classifier of vectors."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(in_features, num_classes)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(vectors)
        return logits


def test_network_for_vectors_is_built_and_normalises(tmp_path: Path) -> None:
    values = torch.randn(24, 5) * 3 + 2
    pair = values, (values[:, 0] > 2).long()
    data = Data.from_arrays(pair, pair, modality=Vectors())
    result = tutelage.train(f"{__name__}:Line", data, out=tmp_path / "run", **SHORT | {"batch_size": 8})
    script = runpy.run_path(str(tmp_path / "run" / "load.py"))
    with torch.no_grad():
        torch.testing.assert_close(script["student"](values), result.model.eval()(values))


def test_unknown_kind_of_inputs_is_left_to_the_user() -> None:
    about: dict[str, Any] = {"model": "textcnn-1-8", "classes": ["a", "b"], "input_shape": [4], "surgery": []}
    about |= {"mean": [0.0], "std": [1.0]}
    for entry in (None, {"kind": "Smells"}, {"kind": "Tokens", "price": 3}, "Tokens", {"kind": ["Tokens"]}):
        assert "network = ...  # build your network here: 'textcnn-1-8'" in loading_script(about | {"modality": entry})


def test_images_record_no_kind(tmp_path: Path, tiny_npz: str) -> None:
    execute(Config(data=tiny_npz, student="resnet8x0.25", **SHORT), tmp_path / "run")
    assert "modality" not in read_metadata(tmp_path / "run" / "student.safetensors")


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
