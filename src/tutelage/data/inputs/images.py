"""Image files as inputs: how they are scaled and cut, and maps of what the network sees as maps of whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data.batch import UNLABELLED
from tutelage.data.decode import Encoded, ImageFiles, decodes, read_headers, scaled_size
from tutelage.data.formats.folder import SUFFIXES
from tutelage.data.images import Images
from tutelage.data.inputs.inputs import Inputs
from tutelage.data.split import Split
from tutelage.data.views.boxes import centre_boxes
from tutelage.data.whole_images import WholeImages
from tutelage.errors import TutelageError

Reader = Callable[[Encoded, Tensor, tuple[int, int], int], tuple[Images, Tensor]]
"""Files, their sizes (N, 2), the size (H, W) and the channels of the network's images, to these images and the part of
each file that they show (N, 4), as in ``Inputs.views``."""


@dataclass(frozen=True)
class ListedFiles:
    """Image files by their paths."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def name(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])

    def fingerprint(self, index: int) -> str | None:
        """None: nothing that is predicted is cached."""
        return None


def centred(files: Encoded, sizes: Tensor, size: tuple[int, int], channels: int) -> tuple[Images, Tensor]:
    """The middle square of each file, its shorter side scaled; files of this size as they are."""
    square = size[0] == size[1]
    if not square:
        check_sizes(files, sizes, size)
    views = []
    for height, width in sizes.tolist():
        scaled_width, scaled_height = scaled_size((width, height), size[0]) if square else (width, height)
        across, down = width / scaled_width, height / scaled_height
        left, top = (scaled_width - size[1]) // 2, (scaled_height - size[0]) // 2
        views.append([left * across, top * down, size[1] * across, size[0] * down])
    return ImageFiles(files, size, channels, resize=square), torch.tensor(views, dtype=torch.float64)


def whole(files: Encoded, sizes: Tensor, size: tuple[int, int], channels: int) -> tuple[Images, Tensor]:
    """The middle 7/8 of the shorter side of each file, as networks are evaluated that were trained on random boxes."""
    if size[0] != size[1]:
        return centred(files, sizes, size, channels)
    images = WholeImages(files, size, channels, sizes)
    top, left, height, width, _ = centre_boxes(images.sizes).double().unbind(1)
    down, across = (sizes / images.sizes).unbind(1)
    return images, torch.stack([left * across, top * down, width * across, height * down], 1)


def check_sizes(files: Encoded, sizes: Tensor, size: tuple[int, int]) -> None:
    """Refuse files of another size than the network's images, which were not scaled.

    Raises:
        TutelageError: with the first such file.
    """
    for number, (height, width) in enumerate(sizes.tolist()):
        if (height, width) != size:
            raise TutelageError(
                f"{files.name(number)} has {width}x{height} pixels, and the network was trained on images of "
                f"{size[1]}x{size[0]} that were not scaled; give images of this size"
            )


def image_inputs(
    listed: Sequence[tuple[Path, str]],
    shape: tuple[int, ...],
    reader: Reader,
    *,
    skip_bad: bool = False,
    ids: Sequence[int | str] = (),
) -> Inputs:
    """Image files as a network takes them.

    Args:
        listed: each file and the path of its prediction without suffix.
        shape: (C, H, W) of the network's images.
        reader: how files are scaled and cut.
        skip_bad: leave out files that cannot be decoded.
        ids: of the files; by default they count from 1.

    Raises:
        TutelageError: a file cannot be read, or all cannot.
    """
    channels, *size = shape
    files = ListedFiles(tuple(file for file, _ in listed))
    readable = list(range(len(files)))
    if skip_bad:
        readable = [number for number in readable if decodes(files, number, image_size=size[0])]
    if not readable:
        raise TutelageError(f"none of the {len(files)} images can be read, first {files.name(0)}; check the files")
    readable_files = ListedFiles(tuple(files[number] for number in readable))
    sizes = torch.tensor([header.size for header in read_headers(readable_files)])
    images, views = reader(readable_files, sizes, (size[0], size[1]), channels)
    count, among = len(readable), {*readable}
    numbers = ids or range(1, len(files) + 1)
    return Inputs(
        noun="file",
        names=tuple(map(str, readable_files.paths)),
        split=Split.of(images, torch.full((count,), UNLABELLED)),
        outputs=tuple(listed[number][1] for number in readable),
        counts=torch.ones(count, dtype=torch.int64),
        sizes=sizes,
        views=views,
        ids=tuple(numbers[number] for number in readable),
        unreadable=tuple(files[number] for number in range(len(files)) if number not in among),
    )


def listed_images(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The files among these paths and the images in the folders among them, with the paths of their predictions.

    A prediction is named as its image: in a folder by the path below it, else by the file's name.

    Raises:
        TutelageError: there is no such path, or no image in a folder.
    """
    listed: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise TutelageError(f"the folder {path} has no image ({', '.join(sorted(SUFFIXES))}); name another")
            listed += [(file, str(file.relative_to(path).with_suffix(""))) for file in inside]
        elif path.is_file():
            listed.append((path, path.stem))
        else:
            raise TutelageError(f"there is no image or folder {path}; check the path")
    if not listed:
        raise TutelageError("no image is given; name image files or folders")
    return listed


def of_whole_image(plane: Tensor, view: Tensor, size: Sequence[int], *, nearest: bool, fill: float) -> Tensor:
    """A map of the part of an image that a network sees as a map of the whole image: (h, w) to (H, W) float32.

    Args:
        plane: covers the part.
        view: (4,) left, top, width and height of the part, in pixels of the image.
        size: (H, W).
        nearest: take the nearest value, as class numbers require, instead of interpolating.
        fill: the value outside of the part.
    """
    left, top, width, height = view.tolist()
    x, y = (
        2 * (torch.arange(int(count), dtype=torch.float64) + 0.5 - start) / extent - 1
        for count, start, extent in ((size[1], left, width), (size[0], top, height))
    )
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2)
    mode = "nearest" if nearest else "bilinear"
    planes = plane.double()[None, None]
    values = F.grid_sample(planes, grid[None], mode=mode, padding_mode="border", align_corners=False)[0, 0]
    return values.masked_fill((grid.abs() > 1).any(2), fill).float()
