"""Fixtures of the tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.calls import SHORT
from tests.runs.run_folders import STUDENT
from tutelage.config import Config
from tutelage.runs import execute


@pytest.fixture
def finished_run(tiny_npz: str, tmp_path: Path) -> Path:
    folder = tmp_path / "finished"
    execute(Config(data=tiny_npz, student="resnet8x0.5", **SHORT | {"epochs": 10, "lr": 0.2}), folder)
    return folder


@pytest.fixture
def config(tiny_npz: str) -> Config:
    return Config(data=tiny_npz, student=STUDENT, epochs=2, batch_size=16, lr=0.1, device="cpu", workers=0)


@pytest.fixture
def teacher(config: Config, tmp_path: Path) -> str:
    """The folder of a finished run that knows its classes."""
    folder = tmp_path / "teacher"
    execute(config.replace(student="resnet8x0.5", epochs=10, lr=0.2), folder)
    return str(folder)
