"""Fixtures of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.config import Config


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, made once."""
    from tutelage.runs import execute

    folder = tmp_path_factory.mktemp("runs") / "teacher"
    execute(Config(data="digits", student="resnet8", epochs=2), folder)
    return folder
