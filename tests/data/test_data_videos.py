"""Videos in folders of frames, in the layouts of OTB and GOT-10k."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.videos import moving_squares, write_boxes, write_frames
from tutelage.data import Data, open_data
from tutelage.data.formats.frame_files import FrameFiles
from tutelage.data.frames import FramePairs, Frames
from tutelage.data.targets.track import box_of, visible
from tutelage.errors import TutelageWarning


def write_otb(folder: Path, *names: str, frames: int = 5, separator: str = ",") -> None:
    """A video in the layout of OTB for each name."""
    for number, name in enumerate(names):
        pixels, labels = moving_squares(1, frames, seed=number)
        write_frames(folder / name / "img", pixels)
        write_boxes(folder / name / "groundtruth_rect.txt", box_of(labels), separator)


@pytest.mark.parametrize("separator", [",", "\t", " ", ", "])
def test_layout_of_otb(tmp_path: Path, separator: str) -> None:
    write_otb(tmp_path / "train", "Bird1", "Car2", separator=separator)
    write_otb(tmp_path / "test", "Walking", separator=separator)
    data = open_data(f"frames:{tmp_path}")
    assert data.targets.task == "tracking"
    assert data.modality == Frames(127)
    assert data.views == FramePairs(127)
    assert data.classes == ("object",)
    assert data.record[0]["videos"] == ["Bird1", "Car2", "Walking"]
    for split, number, seed in ((data.train, 0, 0), (data.train, 1, 1), (data.test, 2, 0)):
        pixels, labels = moving_squares(1, 5, seed=seed)
        rows = (split.labels[:, 0] == number).nonzero()[:, 0]
        assert torch.equal(split.inputs[rows], pixels)  # type: ignore[index]
        assert torch.equal(split.labels[rows, 1:], labels[:, 1:])
    assert data.files[0] == "Bird1/img/0001.png"
    assert data.test_files[0] == "Walking/img/0001.png"


def test_layout_of_got10k(tmp_path: Path) -> None:
    pixels, labels = moving_squares(1, 4)
    for split in ("train", "val", "test"):
        folder = write_frames(tmp_path / split / "GOT-10k_000001", pixels, digits=8)
        write_boxes(folder / "groundtruth.txt", box_of(labels))
        (folder / "absence.label").write_text("0\n0\n1\n0\n")
        (tmp_path / split / "list.txt").write_text("GOT-10k_000001\n")
    data = open_data(f"frames:{tmp_path}", image_size=255)
    assert data.modality == Frames(255)
    assert data.validation is not None
    for part in data.splits.values():
        assert visible(part.labels).tolist() == [True, True, False, True]
        assert torch.equal(part.labels[3, 2:], labels[3, 2:])


def test_share_of_whole_videos_is_the_test_split(tmp_path: Path) -> None:
    write_otb(tmp_path, *"ABCDE", frames=3)
    with pytest.warns(TutelageWarning, match="in whole groups"):
        data = open_data(f"frames:{tmp_path}")
    assert len(data.test) == 3
    assert len(open_data(f"frames:{tmp_path}", test=0.4).test) == 6
    names = {data.test_files[index].split("/")[0] for index in data.test.index.tolist()}
    assert len(names) == 1


def test_several_objects_are_several_videos(tmp_path: Path) -> None:
    write_otb(tmp_path / "train", "Jogging")
    write_otb(tmp_path / "test", "Walking")
    folder = tmp_path / "train" / "Jogging"
    boxes = box_of(moving_squares(1, 5)[1])
    write_boxes(folder / "groundtruth_rect.1.txt", boxes)
    write_boxes(folder / "groundtruth_rect.2.txt", boxes + torch.tensor([1.0, 2.0, 0.0, 0.0]))
    (folder / "groundtruth_rect.txt").unlink()
    data = open_data(f"frames:{tmp_path}")
    assert data.record[0]["videos"] == ["Jogging.1", "Jogging.2", "Walking"]
    assert len(data.train) == 10
    assert torch.equal(data.train.labels[5:, 2:] - data.train.labels[:5, 2:], torch.tensor([[1.0, 2, 0, 0]] * 5))


def test_smaller_frames_are_filled_up_with_their_mean_colour(tmp_path: Path) -> None:
    write_otb(tmp_path / "train", "A")
    pixels, labels = moving_squares(1, 5, size=(60, 50))
    write_frames(tmp_path / "test" / "B" / "img", pixels)
    write_boxes(tmp_path / "test" / "B" / "groundtruth_rect.txt", box_of(labels))
    data = open_data(f"frames:{tmp_path}")
    assert data.train.inputs.shape[1:3] == data.test.inputs.shape[1:3] == (60, 64)
    assert torch.equal(data.test.inputs[:, :, :50], pixels)  # type: ignore[index]
    mean = pixels[0].double().mean().round()
    assert (data.test.inputs[0, :, 50:].double() == mean).all()  # type: ignore[index]


def test_frames_that_do_not_fit_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_otb(tmp_path / "train", "A")
    write_otb(tmp_path / "test", "B")
    memory = open_data(f"frames:{tmp_path}")
    monkeypatch.setattr("tutelage.data.formats.frame_files.IN_MEMORY", 100)
    files = open_data(f"frames:{tmp_path}")
    assert isinstance(files.train.inputs, FrameFiles)
    rows = torch.tensor([3, 0])
    assert torch.equal(files.train.inputs[rows], memory.train.inputs[rows])  # type: ignore[index]
    first = files.fingerprint
    (tmp_path / "train" / "A" / "img" / "0002.png").touch()
    assert open_data(f"frames:{tmp_path}").fingerprint != first


def test_colour_is_preserved(tmp_path: Path) -> None:
    write_otb(tmp_path / "train", "A")
    write_otb(tmp_path / "test", "B")
    Image.new("RGB", (64, 48), (200, 10, 90)).save(tmp_path / "test" / "B" / "img" / "0003.png")
    data = open_data(f"frames:{tmp_path}")
    assert data.input_shape == (3, 127, 190)
    assert data.test.inputs[2, 0, 0].tolist() == [200, 10, 90]  # type: ignore[index]


def with_line(number: int, line: str) -> Callable[[Path], None]:
    """Replace a line of the file of boxes."""

    def change(folder: Path) -> None:
        file = folder / "groundtruth_rect.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines[: number - 1], line, *lines[number:]]))

    return change


def with_boxes(content: bytes) -> Callable[[Path], object]:
    """Replace the file of boxes."""
    return lambda folder: (folder / "groundtruth_rect.txt").write_bytes(content)


def without_frames(folder: Path) -> None:
    for file in (folder / "img").iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing frame": lambda folder: (folder / "img" / "0003.png").unlink(),
    "same frame": lambda folder: shutil.copy(folder / "img" / "0003.png", folder / "img" / "00003.png"),
    "no number": lambda folder: (folder / "img" / "0003.png").rename(folder / "img" / "last.png"),
    "no frames": without_frames,
    "fewer boxes": with_boxes(b"1,2,3,4\n" * 4),
    "three numbers": with_line(3, "1,2,3"),
    "polygon": with_line(1, "1,2,3,4,5,6,7,8"),
    "word": with_line(3, "1,2,x,4"),
    "NaN": with_line(3, "1,NaN,3,4"),
    "no area": with_line(3, "1,1,0,4"),
    "never visible": with_boxes(b"NaN,NaN,NaN,NaN\n" * 5),
    "absence": lambda folder: (folder / "absence.label").write_text("0\n2\n0\n0\n0\n"),
    "no text": with_boxes(b"\xff\xfe\x00"),
    "no image": lambda folder: (folder / "img" / "0003.png").write_text("no image"),
    "no boxes": lambda folder: (folder / "groundtruth_rect.txt").unlink(),
}
"""Damages of a video's folder by name."""


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("missing frame", ["0002.png", "0004.png", "frame 3 is missing"]),
        ("same frame", ["0003.png", "same frame"]),
        ("no number", ["last.png", "0001.jpg"]),
        ("no frames", ["img has no frames", "groundtruth_rect.txt"]),
        ("fewer boxes", ["groundtruth_rect.txt has 4 boxes for 5 frames", "one line for each frame"]),
        ("three numbers", ["line 3", "3 numbers", "x, y, w, h"]),
        ("polygon", ["line 1", "8 numbers", "rotated box"]),
        ("word", ["line 3", "'1,2,x,4'"]),
        ("NaN", ["line 3", "'1,NaN,3,4'", "four NaN"]),
        ("no area", ["line 3", "0 x 4 pixels", "four NaN"]),
        ("never visible", ["no frame in which the object is in sight"]),
        ("absence", ["absence.label", "0 or 1", "5 frames"]),
        ("no text", ["groundtruth_rect.txt is not a text file"]),
        ("no image", ["0003.png", "cannot be read", "replace it"]),
        ("no boxes", ["no video in", "groundtruth_rect.txt"]),
    ],
)
def test_errors_name_the_file_and_the_remedy(tmp_path: Path, problem: str, words: list[str], refused: Any) -> None:
    write_otb(tmp_path / "train", "A")
    write_otb(tmp_path / "test", "B")
    DAMAGES[problem](tmp_path / "train" / "A")
    with refused(*words):
        open_data(f"frames:{tmp_path}")


def test_object_is_out_of_sight_where_all_numbers_are_nan(tmp_path: Path) -> None:
    write_otb(tmp_path / "train", "A")
    write_otb(tmp_path / "test", "B")
    file = tmp_path / "train" / "A" / "groundtruth_rect.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], "NaN,NaN,NaN,NaN", *lines[3:]]))
    data = open_data(f"frames:{tmp_path}")
    assert visible(data.train.labels).tolist() == [True, True, False, True, True]
    assert all(math.isnan(value) for value in data.train.labels[2, 2:].tolist())


def test_options_that_do_not_apply_are_refused(tmp_path: Path, refused: Any) -> None:
    write_otb(tmp_path / "train", "A")
    with refused("no folder test"):
        open_data(f"frames:{tmp_path}")
    write_otb(tmp_path / "test", "B")
    with refused("has a test split already", "0.5"):
        open_data(f"frames:{tmp_path}", test=0.5)
    with refused("skip_bad"):
        open_data(f"frames:{tmp_path}", skip_bad=True)
    with refused("100", "127 or 255"):
        open_data(f"frames:{tmp_path}", image_size=100)
    assert isinstance(open_data(f"frames:{tmp_path}", image_size=63), Data)
