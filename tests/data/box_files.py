"""Small folders of images with boxes, in the layouts of Pascal VOC and COCO."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BoxRow = tuple[float, float, float, float, str]  # from the corner (0, 0), the right and lower ends excluded


def write_image(file: Path, size: tuple[int, int], boxes: Sequence[BoxRow] = (), **options: Any) -> None:
    """A grey image (width, height) with a bright rectangle in each box."""
    pixels = np.full((size[1], size[0], 3), 60, np.uint8)
    for x1, y1, x2, y2, _ in boxes:
        pixels[round(y1) : round(y2), round(x1) : round(x2)] = 230
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


def voc_xml(name: str, size: tuple[int, int], boxes: Sequence[BoxRow], difficult: Sequence[int] = ()) -> str:
    """A VOC annotation, whose pixels count from 1 with both ends included."""
    flags = [*difficult, *[0] * len(boxes)]
    objects = "".join(
        f"<object><name>{label}</name><difficult>{flag}</difficult><bndbox><xmin>{x1 + 1:g}</xmin>"
        f"<ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox></object>"
        for (x1, y1, x2, y2, label), flag in zip(boxes, flags, strict=False)
    )
    return (
        f"<annotation><filename>{name}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


def write_voc(folder: Path, splits: Mapping[str, Mapping[str, Sequence[BoxRow]]], size: tuple[int, int]) -> None:
    """A VOC folder: the boxes of each image by its name, by the name of the list of its split."""
    for listed, images in splits.items():
        for name, boxes in images.items():
            write_image(folder / "JPEGImages" / f"{name}.png", size, boxes)
            (folder / "Annotations").mkdir(exist_ok=True)
            (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(name, size, boxes))
        sets = folder / "ImageSets" / "Main"
        sets.mkdir(parents=True, exist_ok=True)
        (sets / f"{listed}.txt").write_text("\n".join(images) + "\n")


def coco_table(
    images: Mapping[str, Sequence[BoxRow]], size: tuple[int, int], classes: Sequence[str], **extra: Any
) -> dict[str, Any]:
    """A COCO table; categories have the numbers 3, 6, 9 and so on."""
    rows = [(number, box) for number, boxes in enumerate(images.values(), 10) for box in boxes]
    return {
        "images": [
            {"id": number, "file_name": name, "width": size[0], "height": size[1]}
            for number, name in enumerate(images, 10)
        ],
        "annotations": [
            {
                "id": key,
                "image_id": number,
                "category_id": 3 * classes.index(box[4]) + 3,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "iscrowd": 0,
            }
            | extra
            for key, (number, box) in enumerate(rows, 1)
        ],
        "categories": [{"id": 3 * number + 3, "name": name} for number, name in enumerate(classes)],
    }


def write_coco(file: Path, images: Path, table: Mapping[str, Any]) -> None:
    """A COCO file and its images, which are blank but for the boxes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table))
    for row in table["images"]:
        own = [entry["bbox"] for entry in table["annotations"] if entry["image_id"] == row["id"]]
        boxes = [(x, y, x + w, y + h, "") for x, y, w, h in own]
        write_image(images / row["file_name"], (row["width"], row["height"]), boxes)
