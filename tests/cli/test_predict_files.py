"""``tutelage predict`` for tasks other than image classification."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tutelage
from tests.data.box_files import coco_table, write_coco
from tests.data.map_folders import maps_folder
from tests.data.mask_folders import masks_folder
from tests.videos import moving_squares, write_boxes, write_frames
from tutelage.data import open_data
from tutelage.data.targets.track import box_of
from tutelage.evaluation.saliency import predict_maps
from tutelage.evaluation.segmentation import predicted_masks
from tutelage.evaluation.tracks import track
from tutelage.runs import predict_files as module
from tutelage.runs.models import open_model

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 4, "device": "cpu", "precision": "float32"}
ON_CPU: dict[str, Any] = {"device": "cpu", "workers": 0}

pytestmark = pytest.mark.filterwarnings("ignore::tutelage.errors.TutelageWarning")


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).copy()


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on 16x16 masks, and their folder."""
    root = tmp_path_factory.mktemp("segmented")
    masks_folder(root / "scenes", train=8, test=3)
    tutelage.train("fpn-10-0.125", f"masks:{root / 'scenes'}", out=root / "run", **SHORT)
    return root / "run", root / "scenes"


def test_masks_are_those_of_the_evaluation(segmented: tuple[Path, Path], run: Any, tmp_path: Path) -> None:
    folder, scenes = segmented
    code, output, err = run("predict", str(folder), str(scenes / "test" / "images"), "--out", "masks")
    assert code == 0, err
    assert output.strip() == "masks"
    data = open_data(f"masks:{scenes}")
    expected = predicted_masks(open_model(str(folder), data), data.test, 3, device="cpu", workers=0).numpy()
    for number in range(3):
        file = tmp_path / "masks" / f"{number}.png"
        with Image.open(file) as image:
            assert image.mode == "P"
            assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # type: ignore[index]
        assert np.array_equal(pixels_of(file), expected[number])


def test_table_of_a_segmentation_network_has_the_share_of_each_class(
    segmented: tuple[Path, Path], run: Any, tmp_path: Path
) -> None:
    folder, scenes = segmented
    file = scenes / "test" / "images" / "0.png"
    code, _, err = run("predict", str(folder), str(file), "--out", "masks", "--csv", "shares.csv")
    assert code == 0, err
    with (tmp_path / "shares.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    mask = pixels_of(tmp_path / "masks" / "0.png")
    assert row["file"] == str(file)
    for number in range(3):
        assert float(row[f"share of {number}"]) == pytest.approx((mask == number).mean(), abs=1e-6)
    _, output, _ = run("predict", str(folder), str(file))
    largest = np.bincount(mask.flatten()).argmax()
    assert output.startswith(f"{file}  {largest} {100 * (mask == largest).mean():.1f} %")


def test_mask_of_a_larger_image_covers_its_middle_square(segmented: tuple[Path, Path], tmp_path: Path) -> None:
    """An image of 32x48 is scaled to half: the network sees the columns 8 to 40, and the others are void."""
    folder, scenes = segmented
    data = open_data(f"masks:{scenes}")
    small = data.test.inputs[torch.tensor([0])][0].numpy()
    large = np.full((32, 48, 3), 90, np.uint8)
    large[:, 8:40] = small.repeat(2, 0).repeat(2, 1)
    Image.fromarray(large).save(tmp_path / "large.png")
    tutelage.predict_files(folder, tmp_path / "large.png", out=tmp_path / "masks", **ON_CPU)
    mask = pixels_of(tmp_path / "masks" / "large.png")
    assert mask.shape == (32, 48)
    assert (mask[:, :8] == 255).all()
    assert (mask[:, 40:] == 255).all()
    inner = mask[:, 8:40]
    assert (inner < 3).all()
    assert np.array_equal(inner, inner[::2, ::2].repeat(2, 0).repeat(2, 1))  # each prediction covers 2x2 pixels


def test_long_folders_are_predicted_in_parts(
    segmented: tuple[Path, Path], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scenes = segmented
    images = scenes / "train" / "images"
    code, _, err = run("predict", str(folder), str(images), "--out", "whole")
    assert code == 0
    assert "of 8" not in err
    monkeypatch.setattr(module, "AT_ONCE", 3)
    code, _, err = run("predict", str(folder), str(images), "--out", "parts")
    assert [line for line in err.splitlines() if " of " in line] == ["3 of 8", "6 of 8", "8 of 8"]
    names = {file.name for file in images.iterdir()}
    assert {file.name for file in (tmp_path / "parts").iterdir()} == names
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_existing_files_are_not_overwritten(segmented: tuple[Path, Path], run: Any, tmp_path: Path) -> None:
    folder, scenes = segmented
    images = str(scenes / "test" / "images")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "2.png").write_text("mine")
    code, _, err = run("predict", str(folder), images, "--out", "masks")
    assert code != 0
    assert "masks/2.png exists already; remove it, or choose another name" in err
    assert [file.name for file in (tmp_path / "masks").iterdir()] == ["2.png"]  # checked before anything is written
    (tmp_path / "shares.csv").write_text("mine")
    code, _, err = run("predict", str(folder), images, "--csv", "shares.csv")
    assert code != 0
    assert "shares.csv exists already" in err
    assert (tmp_path / "shares.csv").read_text() == "mine"


def test_inputs_of_one_name_are_refused_and_folders_keep_their_paths(
    segmented: tuple[Path, Path], tmp_path: Path, refused: Any
) -> None:
    folder, scenes = segmented
    source = scenes / "test" / "images" / "0.png"
    for part in ("a", "b"):
        (tmp_path / "photos" / part).mkdir(parents=True)
        (tmp_path / "photos" / part / "x.png").write_bytes(source.read_bytes())
    with refused("2 inputs have the name x"):
        files = [tmp_path / "photos" / part / "x.png" for part in "ab"]
        tutelage.predict_files(folder, files, out=tmp_path / "masks", **ON_CPU)
    result = tutelage.predict_files(folder, tmp_path / "photos", out=tmp_path / "masks", **ON_CPU)
    assert [*result.written] == [tmp_path / "masks" / part / "x.png" for part in "ab"]
    assert all(file.is_file() for file in result.written)


def test_saliency_maps_are_those_of_the_network(tmp_path: Path, run: Any, refused: Any) -> None:
    scenes = maps_folder(tmp_path / "scenes", train=8, test=2)
    tutelage.train("fastsal-ax0.25", f"maps:{scenes}", out=tmp_path / "run", **SHORT)
    code, output, err = run("predict", "run", "scenes/test/images", "--out", "maps", "--json")
    assert code == 0, err
    rows = json.loads(output)
    data = open_data(f"maps:{scenes}")
    network = open_model(str(tmp_path / "run"), data)
    with torch.no_grad():
        images = data.test.modality.to_input(data.test.modality.arrange(data.test.inputs[torch.arange(2)]))
        maps = predict_maps(network.eval(), images, (24, 32)).numpy()
    for number in range(2):
        drawn = pixels_of(tmp_path / "maps" / f"{number}.png")
        assert np.abs(drawn - 255 * maps[number]).max() <= 0.51
        assert maps[number][rows[number]["peak_y"], rows[number]["peak_x"]] == pytest.approx(maps[number].max())
    Image.new("RGB", (40, 40)).save(tmp_path / "other.png")
    with refused("other.png has 40x40 pixels", "trained on images of 32x24 that were not scaled"):
        tutelage.predict_files(tmp_path / "run", tmp_path / "other.png", **ON_CPU)


LAMPS = ["light", "lamp"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO's layout with gaps in all numbers, a crowd and an empty image, and a run on it."""
    root = tmp_path_factory.mktemp("detector")
    boxes = {
        f"deep/er/{n}.png": [(4 + n, 6, 24 + n, 30, "light"), (30, 10 + n, 54, 40 + n, "lamp")][: n % 3]
        for n in range(12)
    }
    table = coco_table(boxes, (80, 60), LAMPS)
    table["annotations"][0]["iscrowd"] = 1
    for split in ("train", "test"):
        write_coco(root / "lamps" / "annotations" / f"instances_{split}.json", root / "lamps" / split, table)
    data = f"boxes:{root / 'lamps'}"
    options = SHORT | {"epochs": 40, "lr": 0.05, "clip": 2.0, "augment": False}
    tutelage.train("centre10x0.125", data, image_size=64, out=root / "run", **options)
    return root


def test_detections_for_a_coco_file_are_judged_elsewhere_as_here(detector: Path, run: Any, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    truth = detector / "lamps" / "annotations" / "instances_test.json"
    code, _, err = run("predict", str(detector / "run"), str(truth), "--out", "out", "--csv", "boxes.csv")
    assert code == 0, err
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    listed = json.loads(truth.read_text())
    assert {entry["category_id"] for entry in entries} == {3, 6}
    assert {entry["image_id"] for entry in entries} <= {row["id"] for row in listed["images"]}
    for row in listed["annotations"]:  # which programs of the field read
        row["area"] = row["bbox"][2] * row["bbox"][3]
    (tmp_path / "areas.json").write_text(json.dumps(listed))
    with contextlib.redirect_stdout(io.StringIO()):
        judged = coco.COCO(str(tmp_path / "areas.json"))
        evaluation = COCOeval(judged, judged.loadRes(str(tmp_path / "out" / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    own = json.loads((detector / "run" / "result.json").read_text())["test"]
    assert own["ap50"] > 0.3  # otherwise the comparison says little
    assert evaluation.stats[:3].tolist() == pytest.approx([own["ap"], own["ap50"], own["ap75"]], abs=0.01)
    with (tmp_path / "boxes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(entries)
    assert rows[0]["file"].endswith("deep/er/0.png")
    for row, entry in zip(rows, entries, strict=True):
        assert [float(row[name]) for name in ("x", "y", "width", "height")] == pytest.approx(entry["bbox"], abs=1e-3)
        x, y, width, height = entry["bbox"]
        assert 0 <= x < x + width <= 80.001
        assert 0 <= y < y + height <= 60.001


def test_images_without_a_coco_file_are_numbered(detector: Path, run: Any) -> None:
    images = sorted((detector / "lamps" / "test").rglob("*.png"))
    code, output, err = run("predict", str(detector / "run"), *map(str, images[:3]), "--json")
    assert code == 0, err
    rows = json.loads(output)
    assert {row["image_id"] for row in rows} <= {1, 2, 3}
    assert {(row["class"], row["category_id"]) for row in rows} <= {("light", 1), ("lamp", 2)}
    _, output, _ = run("predict", str(detector / "run"), str(detector / "lamps" / "test"))
    certain = [row for row in rows if row["score"] >= 0.3]
    assert 0 < len(certain) < len(rows)
    assert f"{certain[0]['class']} {certain[0]['score']:.2f}  x, y, width, height" in output


def test_a_coco_file_needs_the_classes_of_the_network_and_no_annotations(
    detector: Path, tmp_path: Path, refused: Any
) -> None:
    file = detector / "lamps" / "annotations" / "instances_test.json"
    table = json.loads(file.read_text())
    bare = detector / "lamps" / "annotations" / "image_info_test.json"
    del table["annotations"]
    table["images"] = [row | {"file_name": f"test/{row['file_name']}"} for row in table["images"]]
    bare.write_text(json.dumps(table))
    result = tutelage.predict_files(detector / "run", bare, **ON_CPU)
    assert result.inputs == 12
    table["categories"].pop()
    bare.write_text(json.dumps(table))
    with refused("the COCO file has no category 'lamp'"):
        tutelage.predict_files(detector / "run", bare, **ON_CPU)
    with refused("it is the only input, and there are 2"):
        tutelage.predict_files(detector / "run", [file, bare], **ON_CPU)
    bare.unlink()


def test_table_without_a_detection_has_its_columns(tmp_path: Path) -> None:
    tutelage.FilePredictions("detection", (), 1).save(tmp_path / "none.csv")
    header = "file,image_id,class,category_id,score,x,y,width,height\n"
    assert (tmp_path / "none.csv").read_text() == header


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos in OTB's layout, with commas, tabs and spaces, and a run on them."""
    root = tmp_path_factory.mktemp("tracker")
    for seed, (split, name, separator) in enumerate((("train", "A", ","), ("train", "B", "\t"), ("test", "C", " "))):
        pixels, labels = moving_squares(1, 6, seed=seed)
        write_frames(root / "videos" / split / name / "img", pixels)
        write_boxes(root / "videos" / split / name / "groundtruth_rect.txt", box_of(labels), separator)
    tutelage.train("siamese4", f"frames:{root / 'videos'}", out=root / "run", **SHORT)
    return root


def test_tracks_are_those_of_the_evaluation_from_the_first_box_alone(tracker: Path, run: Any, tmp_path: Path) -> None:
    video = tracker / "videos" / "test" / "C"
    data = open_data(f"frames:{tracker / 'videos'}")
    expected = track(open_model(str(tracker / "run"), data), data.test, device="cpu", workers=0).boxes
    code, output, err = run("predict", str(tracker / "run"), str(video), "--out", "tracks", "--json")
    assert code == 0, err
    lines = (tmp_path / "tracks" / "C.txt").read_text().splitlines()
    boxes = torch.tensor([[float(word) for word in line.split(",")] for line in lines])
    torch.testing.assert_close(boxes - torch.tensor([1.0, 1, 0, 0]), expected, atol=0.0051, rtol=0)
    rows = json.loads(output)
    assert [row["frame"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["video"] for row in rows} == {"C"}
    assert [rows[2][name] for name in ("x", "y", "width", "height")] == pytest.approx(boxes[2].tolist(), abs=0.0051)
    other = tmp_path / "mine"
    write_frames(other / "D" / "img", moving_squares(1, 6, seed=2)[0])
    (other / "D" / "groundtruth_rect.txt").write_text((video / "groundtruth_rect.txt").read_text().splitlines()[0])
    tutelage.predict_files(tracker / "run", other, out=other / "tracks", **ON_CPU)
    assert (other / "tracks" / "D.txt").read_text() == (tmp_path / "tracks" / "C.txt").read_text()


def test_videos_in_parts_are_those_of_all(tracker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = tracker / "videos" / "train"
    whole = tutelage.predict_files(tracker / "run", videos, **ON_CPU)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert tutelage.predict_files(tracker / "run", videos, **ON_CPU).rows == whole.rows
    assert [row["video"] for row in whole.rows] == ["A"] * 6 + ["B"] * 6


def test_videos_without_a_box_are_refused(tracker: Path, tmp_path: Path, refused: Any) -> None:
    write_frames(tmp_path / "E" / "img", moving_squares(1, 3)[0])
    with refused("has no box to start from; write groundtruth_rect.txt"):
        tutelage.predict_files(tracker / "run", tmp_path / "E", **ON_CPU)
    with refused("there is no folder", "film.mp4"):
        tutelage.predict_files(tracker / "run", tmp_path / "film.mp4", **ON_CPU)
    with refused("a number of classes is for classification, and this is tracking"):
        tutelage.predict_files(tracker / "run", tracker / "videos" / "test", top=2, **ON_CPU)
