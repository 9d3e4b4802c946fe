"""Fixtures of the tests of runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.calls import SHORT
from tests.runs.partly_labelled import SHORT_RECIPE, Net, RecordingRun
from tests.runs.run_folders import STUDENT
from tutelage.config import Config, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.models.tapped import Tapped
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


@pytest.fixture
def any_model(tiny_model: Net) -> Callable[[], Tapped]:
    """A tiny network with random weights."""
    return lambda: tiny_model(int(torch.randint(9999, ())), dropout=0.2)


@pytest.fixture
def partly_labelled(tiny_data: Data) -> Data:
    """``tiny_data`` with two labels per class; 40 of 48 samples have none."""
    labels = tiny_data.train.labels.clone()
    labels[8:] = -1
    return replace(tiny_data, train=replace(tiny_data.train, labels=labels))


@pytest.fixture
def recording_run(partly_labelled: Data, any_model: Callable[[], Tapped]) -> Callable[..., RecordingRun]:
    """``recording_run(data=partly_labelled, recipe=SHORT_RECIPE, **settings)``: the fit that the method requested."""

    def make(data: Data = partly_labelled, recipe: Recipe = SHORT_RECIPE, **settings: Any) -> RecordingRun:
        run = RecordingRun(data, any_model, recipe=recipe, seed=3)
        find("mean_teacher_lc")(run, **settings)
        return run

    return make
