"""Fixtures of the tests of studies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.studies.running import Tiny
from tutelage.studies.study import Study


@pytest.fixture
def tiny(tiny_npz: str) -> Tiny:
    """A study of runs of a second."""

    def make(**fields: Any) -> Study:
        train = {"epochs": 6, "batch_size": 8, "lr": 0.1, "device": "cpu", **fields.pop("train", {})}
        study_fields = {"data": tiny_npz, "students": "resnet8x0.25", "teachers": "resnet8x0.25", "seeds": 2}
        return Study(**{**study_fields, "methods": "hinton", "train": train, **fields})

    return make
