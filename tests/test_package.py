"""The metadata of the package agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import tutelage

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == tutelage.__version__ == citation["version"]


def test_every_dependency_is_pinned() -> None:
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    extras = (
        "detection",
        "onnx",
        "lightning",
        "ray",
        "tensorboard",
        "text",
        "frame",
        "docs",
        "dev",
    )  # timm and hf are not tested
    requirements = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    names = {re.split(r"[<>=\[]", line)[0] for line in requirements} - {"tutelage"}
    assert not names - set(pins)
