"""The guides in docs/: their commands and their Python run, in the order of the page, with fewer epochs and seeds."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tutelage
from tests.conftest import Command
from tests.data.box_files import coco_table, write_coco, write_voc
from tests.data.map_folders import maps_folder
from tests.data.mask_folders import masks_folder
from tests.videos import moving_squares, write_boxes, write_frames
from tutelage.data.targets.track import box_of
from tutelage.studies.workers import InlineWorkers

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r'^```(bash|python)(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CLASSES = ("cats", "dogs", "owls")


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The language, the file name and the code of each block of a page that can be run."""
    return BLOCK.findall((DOCS / page).read_text())


def shorten(code: str) -> str:
    """The code with one epoch, two seeds, smaller networks and few digits."""
    code = re.sub(r"epochs([ =])\d+", r"epochs\g<1>1", code)
    code = re.sub(r"\b(textcnn|texttransformer)-\d+-\d+", r"\1-1-8", code)
    code = re.sub(r"\bfpn-\d+(-[\d.]+)?", "fpn-10-0.125", code)
    code = re.sub(r"siamese\d+", "siamese4", code)
    code = re.sub(r"centre\d+x[\d.]+", "centre10x0.125", code)
    code = code.replace("--image-size 256", "--image-size 32").replace("256, 256", "32, 32")
    code = code.replace("image_size=256", "image_size=32")
    code = re.sub(r"resnet8\b", "resnet8x0.5", code)
    code = re.sub(r"resnet(14|20)\b", "resnet8", code)
    code = code.replace("--noise 0.4", "--noise 0.4 --per-class 20").replace('noise="0.4"', 'noise="0.4", per_class=20')
    code = code.replace(",den --samples 100", ",den:extra=20 --samples 20")
    code = code.replace("--target flops=0.5 --target flops=0.25", "--target flops=0.5 --methods uniform_width")
    return re.sub(r"--seeds \d+", "--seeds 2", code)


def commands(code: str) -> Iterator[list[str]]:
    for line in code.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "tutelage", line
        yield words


def write_images(folder: Path, per_class: int) -> None:
    """PNG files of 40 x 32 pixels: noise with stripes of another direction for each class."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :32] // 4
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        stripes = 100 * ((rows, columns, rows + columns)[label] % 2)
        for number in range(per_class):
            pixels = generator.integers(0, 120, (40, 32, 3)) + stripes[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03}.png")


@pytest.fixture
def follow(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a page in the empty folder ``tmp_path``; the namespace of its Python, and the output of all commands."""
    monkeypatch.syspath_prepend(tmp_path)

    def follow(page: str) -> tuple[dict[str, Any], str]:
        namespace: dict[str, Any] = {}
        output = ""
        for language, file, code in blocks(page):
            if file:
                Path(file).write_text(code)
            elif language == "python":
                exec(shorten(code), namespace)
            else:
                for words in commands(shorten(code)):
                    code_, out, err = run(*words)
                    assert code_ == 0, (words, err)
                    output += out
        return namespace, output

    return follow


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")  # one epoch leaves teachers at chance level
def test_tutorial_runs(follow: Any, tmp_path: Path) -> None:
    write_images(tmp_path / "images", per_class=20)
    namespace, output = follow("tutorial.md")
    assert all(name in output for name in CLASSES)
    assert (tmp_path / "runs" / "study" / "report.html").exists()
    assert namespace["logits"].shape == (1, 3)
    assert "owls" in str(namespace["metadata"])
    assert 0 <= namespace["result"].metrics["test"]["accuracy"] <= 1


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_noisy_labels_page_runs(follow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tutelage.studies.workers.LocalWorkers", lambda count: InlineWorkers()
    )  # the tutorial starts processes
    write_images(tmp_path / "images" / "train", per_class=20)
    write_images(tmp_path / "images" / "test", per_class=4)
    fields: dict[str, Any] = {"epochs": 1, "image_size": 32, "device": "cpu", "out": tmp_path / "runs" / "pretrained"}
    tutelage.train("resnet8x0.5", f"folder:{tmp_path / 'images'}", **fields)
    namespace, _ = follow("noisy-labels.md")
    issues = namespace["issues"]
    assert len({row["file"] for row in issues.rows()}) == 3 * 20
    pixels = np.stack(
        [
            np.asarray(Image.open(issues.file_of(row)).resize((32, 40)).crop((0, 4, 32, 36)))
            for row in range(len(issues.labels))
        ]
    )
    assert np.array_equal(pixels, issues.data.train.inputs.numpy())  # a listed file is the image that was examined
    assert (tmp_path / "runs" / "labels" / "labels.html").exists()


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_add_a_method_page_runs(follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.studies.workers.LocalWorkers", lambda count: InlineWorkers())
    namespace, output = follow("add-a-method.md")
    assert "logit_matching" in output
    assert namespace["result"].history[-1]["learners"]["student"].keys() >= {"ce", "match"}
    monkeypatch.delitem(sys.modules, "my_methods")


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_attacks_page_runs(follow: Any) -> None:
    namespace, output = follow("attacks.md")
    assert "worst of all" in output
    assert (namespace["adversarial"] != namespace["images"]).any()
    assert namespace["report"].robust_accuracy <= namespace["report"].clean


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
@pytest.mark.timeout(600)  # every way, at two targets
def test_compress_page_runs(follow: Any, tmp_path: Path) -> None:
    namespace, output = follow("compress.md")
    assert "best compromise" in output
    assert (tmp_path / "runs" / "compressed" / "compression.html").exists()
    assert namespace["compression"].knee() in namespace["compression"].front()
    assert "INT8, ranges from" in output


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_texts_page_runs(follow: Any, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    lines = "".join(
        f"{label}\ta {label} {noun}\n" for label in ("fine", "dull") for noun in ("film", "book", "song") * 4
    )
    (tmp_path / "reviews").mkdir()
    (tmp_path / "new.txt").write_text("a fine film\n")
    for name in ("train", "test"):
        (tmp_path / "reviews" / f"{name}.tsv").write_text(lines)
    _, output = follow("texts.md")
    assert (tmp_path / "student.onnx").exists()
    assert "accuracy" in output
    assert "a fine film  " in output


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_segmentation_page_runs(follow: Any, tmp_path: Path) -> None:
    masks_folder(tmp_path / "scenes", train=12, test=4)
    namespace, output = follow("segmentation.md")
    assert (tmp_path / "student.onnx").exists()
    assert "mean IoU" in output
    assert "masks (pixels)" in output
    assert set(namespace["result"].metrics["test"]["per_class_iou"]) == {"dark", "bright"}


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_tracking_page_runs(follow: Any, tmp_path: Path) -> None:
    for split, names in (("train", ("Bird1", "Car2")), ("test", ("Walking",))):
        for seed, name in enumerate(names):
            pixels, labels = moving_squares(1, 8, seed=seed)
            write_frames(tmp_path / "videos" / split / name / "img", pixels)
            write_boxes(tmp_path / "videos" / split / name / "groundtruth_rect.txt", box_of(labels))
    namespace, output = follow("tracking.md")
    assert len(namespace["data"].test) == 3
    assert "average overlap" in output
    assert "Walking" in (tmp_path / "runs" / "student" / "report.html").read_text()
    assert (tmp_path / "student.onnx").exists()


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_saliency_page_runs(follow: Any, tmp_path: Path) -> None:
    maps_folder(tmp_path / "scenes", train=12, test=4)
    namespace, output = follow("saliency.md")
    assert (tmp_path / "student.onnx").exists()
    assert "shuffled AUC of a centred Gaussian" in output
    assert namespace["result"].metrics["test"]["cc"] is not None


@pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")
def test_detection_page_runs(follow: Any, tmp_path: Path) -> None:
    names = {f"{split}{number}": [(4.0, 4.0, 14.0, 12.0, "cell")] for split in ("a", "b") for number in range(6)}
    splits = {
        "train": {n: b for n, b in names.items() if n[0] == "a"},
        "test": {n: b for n, b in names.items() if n[0] == "b"},
    }
    write_voc(tmp_path / "cells", splits, (40, 30))
    others = tmp_path / "others"
    table = coco_table({"1.png": [(4, 4, 14, 12, "cell")]}, (40, 30), ["cell"], area=80)
    write_coco(others / "annotations" / "instances_val.json", others / "val", table)
    pytest.importorskip("faster_coco_eval", reason="the extra detection is not installed")
    namespace, output = follow("detection.md")
    assert (tmp_path / "student.onnx").exists()
    assert "average precision" in output
    assert all(namespace["messages"])
    assert namespace["boxes"].shape[0] == 2
    assert namespace["boxes"].shape[2] == 6


def test_every_guide_is_tested() -> None:
    tested_guides = {"tutorial.md", "noisy-labels.md", "add-a-method.md", "attacks.md", "compress.md", "texts.md"}
    tested_guides |= {"segmentation.md", "tracking.md", "saliency.md", "detection.md"}
    tested_elsewhere = {"own-loop.md": "test_own_loop.py", "studies.md": "studies", "options.md": "test_docs.py"}
    with_code = {page.name for page in DOCS.glob("*.md") if BLOCK.search(page.read_text())}
    assert with_code == tested_guides | tested_elsewhere.keys()
