"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tutelage.data import CropsAndFlips, Data, Split


@pytest.fixture
def make_data() -> Callable[..., Data]:
    """A factory of random grey 8x8 images with labels 0, 1, ..., classes - 1, 0, ..."""

    def make(train: int = 60, test: int = 20, classes: int = 4, validation: int = 0) -> Data:
        generator = torch.Generator().manual_seed(1)

        def part(size: int) -> Split:
            images = torch.randint(256, (size, 8, 8, 1), generator=generator, dtype=torch.uint8)
            return Split.of(images, torch.arange(size) % classes)

        return Data(
            "made",
            tuple(f"c{c}" for c in range(classes)),
            part(train),
            part(test),
            part(validation) if validation else None,
            CropsAndFlips(pad=1),
        )

    return make
