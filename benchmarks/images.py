"""Reading photographs: random resized crops per second, relative to the way of torchvision's examples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.pairs import Numbers, compare
from benchmarks.setting import BATCH, device
from tutelage.config import Hardware
from tutelage.data import Batches, Data, Split, open_data
from tutelage.data.pixel_cache import PixelCache
from tutelage.data.views.random_views import standard
from tutelage.data.whole_images import WholeImages
from tutelage.models.inputs import normalise
from tutelage.training.hardware import resolve

SIDE = 224
WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION, DECODED, FILLED, CACHED = (
    "torchvision's way",
    "no cache",
    "first epoch, filling the cache",
    "from the cache",
)


def images(short: bool) -> Numbers:
    """An epoch of random resized crops of photographs, relative to torchvision's way. Goals: at most 0.67 and 0.2.

    2,000 JPEG files of sizes near 500 x 375, two worker processes; batches of normalized float32 tensors on the device.
    torchvision's way is an ``ImageFolder`` with ``RandomResizedCrop``, ``RandomHorizontalFlip``, ``ToTensor`` and
    ``Normalize`` in a ``DataLoader``; its steps are written here with Pillow and torch, as torchvision does them.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photos(root / "photos", 2 * BATCH if short else 2000)
        data = open_data(f"folder:{root / 'photos'}", image_size=SIDE, whole=True)
        files = sorted((root / "photos" / "train").glob("*/*.jpg"))
        numbers = count()
        filled = replace(data, train=with_cache(data, root / "filled"))
        epoch(filled)
        epochs: dict[str, Callable[[], object]] = {
            TORCHVISION: lambda: torchvision_epoch(files),
            DECODED: lambda: epoch(data),
            FILLED: lambda: epoch(replace(data, train=with_cache(data, root / f"cache {next(numbers)}"))),
            CACHED: lambda: epoch(filled),
        }
        ratios = compare(epochs, TORCHVISION, 1 if short else 5, warm_up=0 if short else 1)
    samples = len(files) // BATCH * BATCH
    return {
        name: {
            "time": ratio.as_json(),
            "images a second": round(samples / ratio.seconds),
            "times as many": round(1 / ratio.median, 2),
        }
        for name, ratio in ratios.items()
    }


def with_cache(data: Data, folder: Path) -> Split:
    """The training split with a cache in this folder."""
    inputs = data.train.inputs
    assert isinstance(inputs, WholeImages)
    return replace(data.train, inputs=replace(inputs, cache=PixelCache(folder)))


def epoch(data: Data) -> float:
    """One epoch of batches, normalized as networks do."""
    mean, std = (torch.tensor(values, device=device()).view(1, -1, 1, 1) for values in (MEAN, STD))
    layout = torch.channels_last if resolve(Hardware()).channels_last else torch.contiguous_format
    batches = Batches(data.train, batch_size=BATCH, views=standard(3), workers=WORKERS, device=device(), layout=layout)
    total = 0.0
    for batch in batches.epoch(0):
        total += float(normalise(batch.inputs, mean, std)[0, 0, 0, 0])
    return total


class Photos(Dataset[Tensor]):
    """Photographs one at a time: decode, crop, resize, flip, convert to float, normalize."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with self.files[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        top, left, height, width = _random_box(image.height, image.width)
        image = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self.mean).div_(self.std)


def _random_box(height: int, width: int) -> tuple[int, int, int, int]:
    """A box of 8 to 100 % of the area and a ratio of 3/4 to 4/3."""
    for _ in range(10):
        area = height * width * float(torch.empty(1).uniform_(0.08, 1.0))
        aspect = math.exp(float(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3))))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            top, left = (int(torch.randint(room + 1, (1,))) for room in (height - down, width - across))
            return top, left, down, across
    return 0, 0, height, width


def torchvision_epoch(files: list[Path]) -> float:
    """One epoch of a ``DataLoader`` of ``Photos``."""
    loader = DataLoader(Photos(files), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    return sum(float(batch.to(device())[0, 0, 0, 0]) for batch in loader)


def write_photos(folder: Path, number: int) -> None:
    """JPEG files with content at several scales, in two classes of training images, and two test images."""
    rng = np.random.default_rng(0)
    for index in range(number + 2):
        split = "train" if index < number else "test"
        file = folder / split / str(index % 2) / f"{index:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        long, short = (int(rng.integers(side - 50, side + 50)) for side in (500, 375))
        Image.fromarray(_photo(rng, *((short, long) if rng.random() < 0.7 else (long, short)))).save(file, quality=90)


def _photo(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    total = np.zeros((height, width, 3), np.float32)
    for cells, amplitude in ((4, 90), (20, 40), (100, 20)):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR), np.float32)
        total += (layer - 128) * (amplitude / 80)
    return (total + 128).clip(0, 255).astype(np.uint8)
