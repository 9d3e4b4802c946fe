"""Content of run folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STUDENT = "resnet8x0.25"
FILES = {
    ".lock",
    "checkpoints",
    "config.yaml",
    "inputs.json",
    "metrics.jsonl",
    "result.json",
    "student.safetensors",
    "versions.json",
}


def numbers(folder: Path) -> dict[str, Any]:
    """The result without what a clock says."""
    result = strict(folder / "result.json")
    del result["seconds"], result["cost"]["latency_ms"], result["cost"]["latency_ms_quartiles"]
    return result


def strict(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return result


def epochs(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
