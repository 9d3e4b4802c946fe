from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tutelage.data import CropsAndFlips, Data, Split


@pytest.fixture
def make_data() -> Callable[..., Data]:
    """Random grey 8x8 images whose labels go round the classes."""

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
