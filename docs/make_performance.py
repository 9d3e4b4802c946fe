"""Fill the tables of docs/performance.md from the raw files of ``python -m benchmarks``.

The table of ``benchmarks/results/NAME.json`` stands between ``<!-- NAME -->`` and ``<!-- end -->``, for example after
``<!-- overhead -->`` or ``<!-- gpu/overhead -->``.
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"

Groups = list[tuple[str, dict[str, Any]]]


def filled(text: str) -> str:
    """The page with the tables of the current raw files."""
    return re.sub(r"<!-- ([\w/]+) -->\n.*?<!-- end -->", lambda match: _section(match[1]), text, flags=re.DOTALL)


def _section(name: str) -> str:
    raw = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    machine = raw["machine"]
    fields = [machine[key] for key in ("processor", "instructions", "gpu", "precision") if machine.get(key)]
    source = f"`{raw['command']}` on {', '.join(fields)}, {machine['threads']} threads, torch {machine['torch']}"
    # Groups with the same rows share a table, for example the two pairs of networks.
    groups = groupby(raw["measured"].items(), key=lambda group: tuple(group[1]))
    return "\n".join([f"<!-- {name} -->", *(_table(list(group)) for _, group in groups), "", source, "<!-- end -->"])


def _table(groups: Groups) -> str:
    """A Markdown table: a column per group, or a row per group if there are more groups than rows."""
    names, rows = [name for name, _ in groups], list(groups[0][1])
    cells = {(name, row): _cell(values[row]) for name, values in groups for row in rows}
    if len(names) > len(rows):
        header = ["", *rows]
        lines = [[name, *(cells[name, row] for row in rows)] for name in names]
    else:
        header = ["", *(name or "ratio" for name in names)]
        lines = [[row, *(cells[name, row] for name in names)] for row in rows]
    return "\n".join(["", *(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])])


def _cell(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    low, high = value["quartiles"]
    seconds = f"{value['median_seconds']:.2f} s"
    return f"1 ({seconds})" if low == high == 1 else f"{value['ratio']:.3f} [{low:.3f}, {high:.3f}] ({seconds})"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
