"""Changes of the records of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

Refused = Callable[..., AbstractContextManager[None]]
WriteStudy = Callable[..., Path]


def failing(method: str, noise: str | None, seed: int) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    def numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
        hit = (record["method"], record["noise"], record["seed"]) == (method, noise, seed)
        return {"status": "failed", "error": "step 4: 'flow' became nan"} if hit else {}

    return numbers
