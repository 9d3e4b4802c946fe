"""Small data sets and networks for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.tasks.scenes import scene_data
from tutelage.data import Data
from tutelage.data.modality import Modality, Pixels, Tokens, Vectors
from tutelage.data.targets import Classes, Grades, Maps, Masks, MultiLabel, Quantities, Strings, Targets
from tutelage.models.networks.centre import CentreNet

FEATURES, TOKENS, LENGTH, SYMBOLS = 6, 12, 7, 4


class OfTexts(nn.Module):
    """A text network: sum of token embeddings, one hidden layer, a head."""

    def __init__(self, outputs: int, width: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, width, padding_idx=0)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.hidden(self.table(tokens).sum(1))))
        return logits


class OfStrings(nn.Module):
    """A string network: one shared layer and logits (B, L, C)."""

    def __init__(self, length: int, symbols: int, width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.head = nn.Linear(width, length * symbols)
        self.form = length, symbols

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(images.flatten(1)))).view(-1, *self.form)  # type: ignore[no-any-return]


class OfMaps(nn.Module):
    """A network for saliency: two convolutions and logits (B, 1, H, W)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        self.roles = {"stage1": "features", "embedding": "features"}

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # type: ignore[no-any-return]


def of_masks(classes: int, width: int = 6) -> nn.Module:
    """A segmentation network: three convolutions, logits (B, C, H / 2, W / 2) of half the images' resolution."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, classes, 1),
    )


def of_vectors(outputs: int, width: int = 8) -> nn.Module:
    """A network with one hidden layer and batch normalisation."""
    return nn.Sequential(nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, outputs))


@dataclass(frozen=True)
class Case:
    """A task with its data, a network factory and a bound on the main metric of the test split."""

    task: str
    data: Data
    make: Callable[[], nn.Module]


def _data(name: str, draw: Callable[[int], tuple[Tensor, Tensor]], modality: Modality, targets: Targets) -> Data:
    classes: dict[str, Any] = {"classes": [f"{name} {n}" for n in range(3)]} if name in ("label", "number") else {}
    train, validation, test = draw(48), draw(16), draw(16)
    return Data.from_arrays(train, test, validation, name=f"{name}s", modality=modality, targets=targets, **classes)


def case_of(kind: str) -> Case:
    """The case of a task; ``text`` is classification of texts."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(FEATURES, 3, generator=generator)

    def vectors(count: int) -> Tensor:
        return torch.randn(count, FEATURES, generator=generator)

    def classes(count: int) -> tuple[Tensor, Tensor]:
        inputs = vectors(count)
        return inputs, (inputs @ matrix).argmax(1)

    def grades(count: int) -> tuple[Tensor, Tensor]:
        inputs = vectors(count)
        return inputs, torch.bucketize(inputs @ matrix[:, 0], torch.tensor([-1.0, 1.0]))

    def labels(count: int) -> tuple[Tensor, Tensor]:
        inputs = vectors(count)
        targets = (inputs @ matrix > 0).float()
        targets[::7, 1] = -1
        return inputs, targets

    def numbers(count: int) -> tuple[Tensor, Tensor]:
        inputs = vectors(count)
        targets = (inputs @ matrix).sin()
        targets[::7, 1] = float("nan")
        return inputs, targets

    def strings(count: int) -> tuple[Tensor, Tensor]:
        targets = torch.randint(SYMBOLS, (count, 2), generator=generator)
        images = torch.randint(60, (count, 8, 8, 1), generator=generator, dtype=torch.uint8)
        for position in range(2):
            for sample, symbol in enumerate(targets[:, position].tolist()):
                images[sample, 4 * position : 4 * position + 4, 2 * symbol : 2 * symbol + 2] += 180
        targets[::7, 1] = -1
        return images, targets

    def maps(count: int) -> tuple[Tensor, Tensor]:
        """Bright squares of 2 x 2 pixels, at which people look; the map of each seventh image is unknown."""
        images = torch.randint(120, (count, 8, 8, 1), generator=generator, dtype=torch.uint8)
        targets = torch.zeros(count, 2, 8, 8)
        for sample, (row, column) in enumerate(torch.randint(7, (count, 2), generator=generator).tolist()):
            images[sample, row : row + 2, column : column + 2] += 120
            targets[sample, :, row : row + 2, column : column + 2] = 1
        targets[::7] = float("nan")
        return images, targets

    def masks(count: int) -> tuple[Tensor, Tensor]:
        """Bright and dark halves of images, above or below, with void pixels and an image without labels."""
        targets = torch.zeros(count, 8, 8, dtype=torch.int64)
        images = torch.randint(60, (count, 8, 8, 1), generator=generator, dtype=torch.uint8)
        for sample in range(count):
            part = slice(4) if sample % 2 else slice(4, 8)
            targets[sample, part] = 1 + sample % 2
            images[sample, part] += 80 + 80 * (sample % 2)
        targets[:, 3, 2:5] = -1
        targets[::7] = -1
        return images, targets

    def texts(count: int) -> tuple[Tensor, Tensor]:
        targets = torch.arange(count) % 3
        tokens = torch.randint(4, TOKENS, (count, LENGTH), generator=generator)
        tokens[:, 2] = 1 + targets
        tokens[::2, 5:] = 0
        return tokens, targets

    cases: dict[str, Callable[[], Case]] = {
        "classification": lambda: Case(kind, _data("vector", classes, Vectors(), Classes()), lambda: of_vectors(3)),
        "ordinal": lambda: Case(kind, _data("vector", grades, Vectors(), Grades()), lambda: of_vectors(3)),
        "multi_label": lambda: Case(kind, _data("label", labels, Vectors(), MultiLabel()), lambda: of_vectors(3)),
        "regression": lambda: Case(kind, _data("number", numbers, Vectors(), Quantities()), lambda: of_vectors(3)),
        "strings": lambda: Case(kind, _data("string", strings, Pixels(), Strings()), lambda: OfStrings(2, SYMBOLS)),
        "detection": lambda: Case(kind, scene_data(48, 16, 32), lambda: CentreNet(10, 2, 1, 0.125)),
        "saliency": lambda: Case(kind, _data("map", maps, Pixels(), Maps()), OfMaps),
        "segmentation": lambda: Case(kind, _data("mask", masks, Pixels(), Masks()), lambda: of_masks(3)),
        "text": lambda: Case("classification", _data("text", texts, Tokens(TOKENS), Classes()), lambda: OfTexts(3)),
    }
    return cases[kind]()
