"""``boxes:FOLDER``: VOC and COCO layouts, letterboxing, and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.box_files import BoxRow, coco_table, voc_xml, write_coco, write_image, write_voc
from tutelage.data import Data, open_data
from tutelage.data.decode import UPRIGHT
from tutelage.data.formats.boxes.letterbox import placement
from tutelage.data.targets.boxes import CROWD, DIFFICULT

CAT: BoxRow = (2, 4, 12, 20, "cat")
DOG: BoxRow = (10, 0, 40, 30, "dog")
SIZE = (40, 30)
LISTS: dict[str, dict[str, Any]] = {"train": {"a": [CAT, DOG], "b": []}, "val": {"c": [DOG]}, "test": {"d": [CAT]}}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_voc(tmp_path, LISTS, SIZE)
    return tmp_path


def rows_of(data: Data, split: str = "train", image: int = 0) -> list[list[float]]:
    rows = data.splits[split].labels[image]
    return rows[rows[:, 4] >= 0].tolist()


def open_boxes(folder: Path, **options: Any) -> Data:
    return open_data(f"boxes:{folder}", **options)


def test_voc_counts_pixels_from_one(voc: Path) -> None:
    data = open_boxes(voc)
    assert data.classes == ("cat", "dog")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [2, 1, 1]  # type: ignore[arg-type]
    assert rows_of(data) == [[2, 4, 12, 20, 0, 0], [10, 0, 40, 30, 1, 0]]
    assert rows_of(data, image=1) == []
    assert rows_of(data, "test") == [[2, 4, 12, 20, 0, 0]]
    pixels = data.test.inputs[torch.tensor([0])][0]
    bright = (pixels[..., 0] > 150).nonzero()
    assert bright.amin(0).tolist() == [4, 2]
    assert bright.amax(0).tolist() == [19, 11]
    assert data.targets.task == "detection"


def test_trainval_is_the_training_split_and_without_lists_a_share_is_for_testing(voc: Path) -> None:
    sets = voc / "ImageSets" / "Main"
    (sets / "train.txt").rename(sets / "trainval.txt")
    (sets / "val.txt").unlink()
    assert len(open_boxes(voc).train) == 2
    for file in sets.iterdir():
        file.unlink()
    with pytest.warns(UserWarning, match="has no test split"):
        data = open_boxes(voc)
    assert (len(data.train), len(data.test)) == (3, 1)


def test_difficult_boxes_and_crowds_are_kept_as_ignored(voc: Path, tmp_path: Path) -> None:
    (voc / "Annotations" / "a.xml").write_text(voc_xml("a", SIZE, [CAT, DOG], [1, 0]))
    assert [row[5] for row in rows_of(open_boxes(voc))] == [DIFFICULT, 0]
    table = coco_table({"a.png": [CAT, DOG]}, SIZE, ["dog", "cat"], iscrowd=1)
    for name in ("train", "test"):
        write_coco(tmp_path / "coco" / name / "_annotations.coco.json", tmp_path / "coco" / name, table)
    data = open_boxes(tmp_path / "coco")
    assert data.classes == ("dog", "cat")  # in the order of their numbers
    assert [row[4:] for row in rows_of(data)] == [[1, CROWD], [0, CROWD]]


@pytest.mark.parametrize("layout", ["coco", "coco in images", "roboflow", "one file"])
def test_each_layout_of_coco_is_read(layout: str, tmp_path: Path) -> None:
    tables = {name: coco_table({f"{name}.png": [CAT, DOG]}, SIZE, ["cat", "dog", "none"]) for name in ("train", "val")}
    if layout == "one file":
        table = coco_table({f"{n}.png": [CAT, DOG] for n in range(4)}, SIZE, ["cat", "dog"])
        write_coco(tmp_path / "annotations.json", tmp_path / "images", table)
        data = open_boxes(tmp_path, test=0.25)
        assert (len(data.train), len(data.test)) == (3, 1)
    elif layout == "roboflow":
        for name, folder in (("train", "train"), ("val", "valid")):
            write_coco(tmp_path / folder / "_annotations.coco.json", tmp_path / folder, tables[name])
    else:
        inner = "images" if layout == "coco in images" else "."
        for name, table in tables.items():
            file = tmp_path / "annotations" / f"instances_{name}2017.json"
            write_coco(file, tmp_path / inner / f"{name}2017", table)
            (tmp_path / "annotations" / f"captions_{name}2017.json").write_text("{}")
    if layout != "one file":
        with pytest.warns(UserWarning, match="its validation split is the test split"):
            data = open_boxes(tmp_path)
        assert (len(data.train), len(data.test)) == (1, 1)
    assert data.classes == ("cat", "dog")
    assert rows_of(data) == [[2, 4, 12, 20, 0, 0], [10, 0, 40, 30, 1, 0]]


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (97, 31)])
@pytest.mark.parametrize("side", [24, 64])
def test_images_and_boxes_are_scaled_alike_into_a_square(size: tuple[int, int], side: int, tmp_path: Path) -> None:
    box: BoxRow = (8, 6, 24, 26, "cat")
    write_voc(tmp_path, {"train": {"a": [box]}, "test": {"b": [box]}}, size)
    data = open_boxes(tmp_path, image_size=side)
    pixels = data.train.inputs[torch.tensor([0])][0][..., 0].float()
    assert pixels.shape == (side, side)
    place = placement((size[1], size[0]), side)
    assert max(place.height, place.width) == side
    x1, y1, x2, y2 = rows_of(data)[0][:4]
    bright = (pixels > 145).nonzero()
    assert bright.amin(0).tolist() == pytest.approx([y1, x1], abs=1)
    assert (bright.amax(0) + 1).tolist() == pytest.approx([y2, x2], abs=1)
    assert (x2 - x1) / (y2 - y1) == pytest.approx(16 / 20, rel=0.06)
    outside = torch.ones_like(pixels, dtype=torch.bool)
    outside[place.top : place.top + place.height, place.left : place.left + place.width] = False
    assert not pixels[outside].any()


def test_images_of_several_sizes_need_an_image_size(voc: Path, refused: Any) -> None:
    write_image(voc / "JPEGImages" / "b.png", (20, 20))
    (voc / "Annotations" / "b.xml").write_text(voc_xml("b", (20, 20), []))
    with refused("2 sizes", "--image-size"):
        open_boxes(voc)
    assert open_boxes(voc, image_size=32).input_shape == (3, 32, 32)


@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_are_those_of_the_upright_image(orientation: int, voc: Path, refused: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {3: 3, 6: 8}[orientation]
    write_image(voc / "JPEGImages" / "a.png", SIZE, [CAT])
    upright = Image.open(voc / "JPEGImages" / "a.png")
    upright.transpose(UPRIGHT[inverse]).save(voc / "JPEGImages" / "a.png", exif=exif)
    pixels = open_boxes(voc).train.inputs[torch.tensor([0])][0]
    bright = (pixels[..., 0] > 150).nonzero()
    assert bright.amin(0).tolist() == [4, 2]
    if orientation == 6:
        (voc / "Annotations" / "a.xml").write_text(voc_xml("a", (SIZE[1], SIZE[0]), [CAT]))
        (voc / "ImageSets" / "Main" / "val.txt").unlink()
        with refused("a.png has 40x30 pixels (upright, by its EXIF orientation)", "is for 30x40"):
            open_boxes(voc)


def test_boxes_are_cut_at_the_rim_and_those_without_area_counted(voc: Path) -> None:
    boxes: list[BoxRow] = [(-3, 20, 8, 44, "cat"), (5, 5, 5, 9, "cat"), (50, 0, 60, 9, "dog")]
    (voc / "Annotations" / "a.xml").write_text(voc_xml("a", SIZE, boxes))
    with pytest.warns(UserWarning, match="2 boxes have no area"):
        data = open_boxes(voc)
    assert rows_of(data) == [[0, 20, 8, 30, 0, 0]]
    assert data.record[0]["boxes_left_out"] == 2


def test_unreadable_images_are_left_out_on_request(voc: Path, refused: Any) -> None:
    (voc / "JPEGImages" / "b.png").write_bytes(b"no image")
    with refused("b.png", "--skip-bad"):
        open_boxes(voc)
    with pytest.warns(UserWarning, match="1 images cannot be read"):
        data = open_boxes(voc, skip_bad=True)
    assert len(data.train) == 1
    assert data.record[0]["skipped"] == {"train": 1}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("Annotations/a.xml", "<annotation><object></annotation>", ("a.xml cannot be read", "it is no XML")),
        ("Annotations/a.xml", "<!DOCTYPE x [<!ENTITY e 'ee'>]><annotation>&e;</annotation>", ("document type",)),
        ("Annotations/a.xml", "<a>" * 30 + "</a>" * 30, ("levels deep",)),
        ("Annotations/a.xml", "<annotation><object><name>cat</name></object></annotation>", ("object 0", "bndbox")),
        ("Annotations/a.xml", voc_xml("a", SIZE, [CAT]).replace("3</xmin>", "wide</xmin>"), ("<xmin> is 'wide'",)),
        ("Annotations/d.xml", voc_xml("d", SIZE, [(1, 1, 5, 5, "cow")]), ("class 'cow'", "d.png")),
        ("ImageSets/Main/train.txt", "a\nx\n", ("there is no image", "x")),
        ("ImageSets/Main/train.txt", "a\na\n", ("more than once",)),
        ("ImageSets/Main/train.txt", "b\n", ("no training image has a box",)),
        ("ImageSets/Main/train.txt", "", ("lists no training image",)),
        ("JPEGImages/a.jpg", "", ("have the same name",)),
    ],
)
def test_damaged_voc_folders_are_refused(
    file: str, content: str, words: tuple[str, ...], voc: Path, refused: Any
) -> None:
    (voc / file).write_text(content)
    with refused(*words):
        open_boxes(voc)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": []}, ("has no image",)),
        ({"images": [{"id": 10, "file_name": "../../secret.png"}]}, ("secret.png", "below the folder")),
        ({"images": [{"id": 10, "file_name": "nowhere.png"}]}, ("there is no image nowhere.png",)),
        ({"images": [{"file_name": "a.png"}]}, ("has no id",)),
        ({"categories": [{"id": 1, "name": "x"}]}, ("annotation 1", "category 3")),
        ({"annotations": [{"id": 5, "image_id": 77, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, ("image 77",)),
        ({"annotations": [{"id": 5, "image_id": 10, "category_id": 3, "bbox": [0, 0, 1]}]}, ("annotation 5", "bbox")),
        ({"annotations": 3}, ("needs lists",)),
    ],
)
def test_damaged_coco_files_are_refused(
    change: dict[str, Any], words: tuple[str, ...], tmp_path: Path, refused: Any
) -> None:
    table = coco_table({"a.png": [CAT]}, SIZE, ["cat"])
    write_coco(tmp_path / "train" / "annotations.json", tmp_path / "train", table)
    (tmp_path / "train" / "annotations.json").write_text(json.dumps(table | change))
    with refused("annotations.json", *words):
        open_boxes(tmp_path)


@pytest.mark.parametrize(
    ("file", "images"),
    [("annotations/instances_default.json", "images"), ("labels.json", "data"), ("result.json", "images")],
    ids=["CVAT", "FiftyOne", "Label Studio"],
)
def test_single_json_file_has_all_images_whatever_its_name(file: str, images: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write_coco(tmp_path / file, tmp_path / images, coco_table({f"{n}.png": [CAT] for n in range(4)}, SIZE, ["cat"]))
    data = open_boxes(tmp_path, test=0.25)
    assert (len(data.train), len(data.test)) == (3, 1)
    assert rows_of(data) == [[*CAT[:4], 0, 0]]


def test_several_json_files_without_splits_are_refused(tmp_path: Path, refused: Any) -> None:
    table = coco_table({"a.png": [CAT]}, SIZE, ["cat"])
    for name in ("first.json", "second.json"):
        write_coco(tmp_path / name, tmp_path / "images", table)
    with refused("first.json and", "second.json may both", "instances_train.json"):
        open_boxes(tmp_path)


def test_other_folders_are_refused_with_the_layouts(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "train").mkdir()
    with refused("has no training images with boxes", "Pascal VOC", "_annotations.coco.json"):
        open_boxes(tmp_path)
