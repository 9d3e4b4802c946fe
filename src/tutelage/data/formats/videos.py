"""Videos as folders of frames, with the boxes of one object in text files: the layouts of OTB and GOT-10k."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.formats.folder import SUFFIXES, Files
from tutelage.data.formats.frame_files import read_frames
from tutelage.data.frames import SEARCH, Frames
from tutelage.data.stratified import split_off_test
from tutelage.data.targets import Track
from tutelage.errors import TutelageError
from tutelage.text import value_text

LAYOUT = (
    "write NAME/img/0001.jpg, ... with NAME/groundtruth_rect.txt (as OTB) or NAME/00000001.jpg, ... with "
    "NAME/groundtruth.txt (as GOT-10k), in train/ and test/ or in the folder itself"
)
FOLDERS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
BOXES = ("groundtruth_rect*.txt", "groundtruth.txt")
ABSENCE = "absence.label"
SEPARATORS = re.compile(r"[\s,;]+")


def load(folder: Path, image_size: int | None = None, *, test: float | None = None) -> Data:
    """Videos in ``train/`` and ``test/`` (and ``val/``); or all in the folder, of which a share becomes the test split.

    A video is a folder with images in ``img/`` or in itself, and ``groundtruth_rect.txt`` or ``groundtruth.txt``: a
    line for each frame with x, y, w and h in pixels, separated by commas, tabs or spaces, where x = y = 1 is the corner
    of the frame. ``groundtruth_rect.1.txt``, ``.2.txt`` and so on are further objects, each of which is a video of its
    own. The object is out of sight where all four are NaN, or where ``absence.label`` has a 1.

    Frames keep their pixels and coordinates, which start at 0. Smaller frames are filled up to the largest height and
    width at the right and below with their mean colour. They are in memory if all take at most 1 GiB, else read from
    files when they are needed.

    Args:
        folder: of the videos, or of their splits.
        image_size: the side of search crops in pixels, by default 127; 255 for AlexNet's geometry.
        test: the share of the frames for testing, where there is no such folder; whole videos are taken.

    Raises:
        TutelageError: a file is missing or cannot be used; the text names it.
    """
    modality = Frames(SEARCH if image_size is None else image_size)
    folders = {split: folder / name for split, names in FOLDERS.items() for name in names if (folder / name).is_dir()}
    if "train" not in folders:
        folders = {"train": folder}
    elif "test" not in folders:
        raise TutelageError(f"{folder} has a folder train and no folder test; {LAYOUT}")
    videos = {
        split: [video for path in subfolders(root) for video in videos_in(path, root)]
        for split, root in folders.items()
    }
    for split, listed in videos.items():
        if not listed:
            raise TutelageError(f"there is no video in {folders[split]}; {LAYOUT}")
    encoded = {
        split: Files(str(folders[split]), tuple(name for video in listed for name in video.frames))
        for split, listed in videos.items()
    }
    splits, number = {}, 0
    images = read_frames(encoded)
    for split, listed in videos.items():
        labels = [track_labels(video, number + position) for position, video in enumerate(listed)]
        number += len(listed)
        splits[split] = Split.of(images[split], torch.cat(labels), modality, Track())
    record = {"source": "frames", "videos": [video.name for listed in videos.values() for video in listed]}
    records = [record]
    if "test" not in splits:
        splits["train"], splits["test"], entry = split_off_test(splits["train"], test, f"frames:{folder}")
        records.append(entry)
    elif test is not None:
        raise TutelageError(f"{folder} has a test split already; leave out the test share of {test}")
    return Data(
        f"frames:{folder}",
        ("object",),
        **splits,
        views=modality.augmented(tuple(splits["train"].inputs.shape[1:])),
        record=tuple(records),
        files=encoded["train"].names,
        test_files=encoded.get("test", encoded["train"]).names,
    )


@dataclass(frozen=True)
class Video:
    """A video and one of its objects.

    Attributes:
        name: of the folder, with the object's number if there are several.
        frames: the paths of its images below the folder of the split.
        boxes: (T, 4) as in the file, NaN where the object is out of sight.
    """

    name: str
    frames: tuple[str, ...]
    boxes: Tensor


def track_labels(video: Video, number: int) -> Tensor:
    """(T, 6) labels of a video; coordinates start at 0."""
    count = len(video.frames)
    numbers = torch.stack([torch.full((count,), float(number)), torch.arange(count, dtype=torch.float32)], 1)
    return torch.cat([numbers, video.boxes - torch.tensor([1.0, 1.0, 0.0, 0.0])], 1)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def videos_in(folder: Path, root: Path | None) -> list[Video]:
    """The objects of a folder of frames; none if there are no boxes in it.

    The frames are named below ``root``, and each needs a box. Without a root they have whole paths, and boxes may be
    missing at the end.
    """
    files = next((files for pattern in BOXES if (files := sorted(folder.glob(pattern)))), [])
    if not files:
        return []
    frames = _frames(folder / "img" if (folder / "img").is_dir() else folder)
    names = tuple(str(frame) if root is None else os.path.relpath(frame, root) for frame in frames)
    videos = []
    for file in files:
        boxes = _boxes(file)
        if root is None and len(boxes) < len(frames):
            boxes = torch.cat([boxes, torch.full((len(frames) - len(boxes), 4), torch.nan)])
        if len(boxes) != len(frames):
            raise TutelageError(
                f"{file} has {len(boxes)} boxes for {len(frames)} frames; give one line for each frame, NaN where the "
                "object is out of sight, and remove other frames"
            )
        if (folder / ABSENCE).is_file():
            boxes[_absent(folder / ABSENCE, len(frames))] = torch.nan
        if not bool((~boxes.isnan()).any()):
            raise TutelageError(f"{file} has no frame in which the object is in sight; remove {folder}")
        suffix = file.name.removeprefix("groundtruth_rect").removesuffix(".txt") if len(files) > 1 else ""
        videos.append(Video(folder.name + suffix, names, boxes))
    return videos


def _frames(folder: Path) -> list[Path]:
    """The images of a folder by the numbers of their names, which are consecutive."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    numbered = sorted((_number(path), path) for path in images)
    if not numbered:
        raise TutelageError(f"{folder} has no frames; {LAYOUT}")
    for (number, path), (following, other) in pairwise(numbered):
        if following != number + 1:
            problem = f"frame {number + 1} is missing" if following > number else "are the same frame"
            raise TutelageError(f"between {path} and {other.name}, {problem}; frames are numbered one by one")
    return [path for _, path in numbered]


def _number(path: Path) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    if digits is None:
        raise TutelageError(
            f"the name of the frame {path} does not end in a number; name frames 0001.jpg, 0002.jpg, ..."
        )
    return int(digits[1])


def _boxes(file: Path) -> Tensor:
    """The boxes (T, 4) of a text file."""
    rows = []
    for number, line in enumerate(_lines(file), 1):
        words = [word for word in SEPARATORS.split(line) if word]
        if len(words) != 4:
            hint = " (eight are a rotated box; write the upright one around it)" if len(words) == 8 else ""
            raise TutelageError(f"line {number} of {file} has {len(words)} numbers{hint}; it must be x, y, w, h")
        try:
            row = [float(word) for word in words]
        except ValueError:
            raise TutelageError(f"line {number} of {file} is not four numbers: {value_text(line)}") from None
        missing = [math.isnan(value) for value in row]
        if any(missing) != all(missing) or any(math.isinf(value) for value in row):
            raise TutelageError(
                f"line {number} of {file} is {value_text(line)}; write four finite numbers, or four NaN where the "
                "object is out of sight"
            )
        if row[2] <= 0 or row[3] <= 0:
            raise TutelageError(
                f"line {number} of {file} has a box of {row[2]:g} x {row[3]:g} pixels; write four NaN where the object "
                "is out of sight"
            )
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def _absent(file: Path, count: int) -> Tensor:
    """(T,) bool: in which frames the object is out of sight."""
    lines = [line.strip() for line in _lines(file)]
    if len(lines) != count or not {*lines} <= {"0", "1"}:
        raise TutelageError(
            f"{file} must have a line with 0 or 1 for each of {count} frames, and has {len(lines)} lines"
        )
    return torch.tensor([line == "1" for line in lines])


def _lines(file: Path) -> list[str]:
    """The lines of a text file, without empty ones at its end."""
    try:
        return file.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise TutelageError(f"{file} is not a text file; write x,y,w,h on a line for each frame") from error
