"""Small data sets for the methods that ``tests.other_device`` trains."""

from __future__ import annotations

from dataclasses import replace

import torch

from tutelage.data import CropsAndFlips, Data, Maps, Split, open_data
from tutelage.data.modality import Tokens
from tutelage.data.targets import Masks


def data() -> Data:
    """48 training and 16 held-out images of four classes."""
    generator = torch.Generator().manual_seed(7)

    def part(size: int) -> Split:
        return Split.of(
            torch.randint(256, (size, 8, 8, 1), generator=generator, dtype=torch.uint8), torch.arange(size) % 4
        )

    return Data("tiny", ("a", "b", "c", "d"), part(48), part(16), part(16), CropsAndFlips(pad=1, flip=True))


def barcodes() -> Data:
    """48 training and 16 held-out barcodes."""
    full_data = open_data("barcodes")
    train, test = (part.subset(torch.arange(size)) for part, size in ((full_data.train, 48), (full_data.test, 16)))
    return replace(full_data, train=train, validation=test, test=test)


def masks() -> Data:
    """The images of ``data``, each with a mask of four classes."""
    full_data, generator = data(), torch.Generator().manual_seed(8)
    parts = {
        name: (part.inputs, torch.randint(-1, 4, (len(part), 8, 8), generator=generator))
        for name, part in full_data.splits.items()
    }
    return Data.from_arrays(**parts, targets=Masks(), views=full_data.views)  # type: ignore[arg-type]


def texts() -> Data:
    """48 training and 16 held-out texts of four classes, of 4 or 6 tokens."""
    generator = torch.Generator().manual_seed(7)

    def part(size: int) -> Split:
        tokens = torch.randint(1, 12, (size, 6), generator=generator)
        tokens[::2, 4:] = 0
        return Split.of(tokens, torch.arange(size) % 4, modality=Tokens(12))

    return Data("texts", ("a", "b", "c", "d"), part(48), part(16), part(16))


def saliency_maps() -> Data:
    """The images of ``data`` with random densities and fixations, some of them without."""

    def part(split: Split, seed: int) -> Split:
        density = torch.rand(len(split), 8, 8, generator=torch.Generator().manual_seed(seed))
        labels = torch.stack([density, (density > 0.7).float()], 1)
        labels[::5] = torch.nan
        return Split.of(split.inputs, labels, targets=Maps())

    images = data()
    parts = {name: part(split, number) for number, (name, split) in enumerate(images.splits.items())}
    return Data("maps", ("saliency",), **parts, views=images.views)
