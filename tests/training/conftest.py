"""Fixtures of the tests of training."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.resuming import EPOCHS, METHODS, Net, StoppedError
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.models.tapped import Tapped
from tutelage.training import Run


@pytest.fixture
def start(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Callable[..., tuple[Tapped, Run]]:
    """``start(name, folder, stop=None)``: run a method as in a new process, and stop it at its n-th report."""

    def run_method(name: str, folder: Path, stop: int | None = None) -> tuple[Tapped, Run]:
        torch.manual_seed(random.SystemRandom().randrange(2**31))  # as in a new process
        np.random.seed(None)
        random.seed()
        reports: list[Any] = []

        def report(record: dict[str, Any]) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        run = Run(
            tiny_data,
            lambda: tiny_model(int(torch.randint(1000, ())), dropout=0.2),
            [tiny_model(seed=1, width=6)],
            recipe=Recipe(epochs=EPOCHS, batch_size=16, lr=0.05),
            hardware=on_cpu,
            seed=3,
            folder=folder,
            report=report,
        )
        student = METHODS[name](run)
        return student, run

    return run_method
