"""Fill the tables of docs/performance.md from the raw files of ``python -m benchmarks``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->`` and is made of ``benchmarks/results/NAME.json``, one of
a GPU between ``<!-- gpu/NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def filled(text: str) -> str:
    """The page with its tables as the raw files have them now."""
    return re.sub(r"<!-- ([\w/]+) -->\n.*?<!-- end -->", lambda found: _table(found[1]), text, flags=re.DOTALL)


def _table(name: str) -> str:
    raw = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    lines = [f"<!-- {name} -->", "", "| | | ratio | quartiles | seconds |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {of} | {what} | {_told(value)} |" for of, row in raw["measured"].items() for what, value in row.items()
    ]
    machine = raw["machine"]
    on = ", ".join(machine[key] for key in ("processor", "instructions", "gpu", "precision") if machine.get(key))
    lines += ["", f"`{raw['command']}` on {on}, {machine['threads']} threads, torch {machine['torch']}", "<!-- end -->"]
    return "\n".join(lines)


def _told(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value} | |"
    low, high = value["quartiles"]
    return f"{value['ratio']:.3f} | {low:.3f} to {high:.3f} | {value['median_seconds']:.2f}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
