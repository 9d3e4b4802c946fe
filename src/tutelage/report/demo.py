"""The demonstration: the study's methods on real digits, with wrong labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tutelage.config import Config
from tutelage.files import atomic_write
from tutelage.methods import find
from tutelage.report.plots import plot_gains
from tutelage.studies.compare import PLAIN, TEACHER, Row, compare
from tutelage.studies.statistics import Interval

STUDY = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")
"""The nine methods of the study."""


def run_demo(
    config: Config,
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    out: Path,
    *,
    teacher: str,
    console: Console,
    as_json: bool = False,
) -> None:
    """Compare, draw, and print the table and the folder."""
    chosen = [find(name).name for name in methods or STUDY]  # an unknown name fails before anything is trained
    names = [TEACHER, PLAIN, *(name for name in chosen if name != PLAIN)]
    if not as_json:
        console.print(
            f"{config.data}, noise {config.noise}: a {teacher} teacher on the noisy labels, then {config.student} "
            f"students: {', '.join(names[1:])}; {len(seeds)} seeds, {config.epochs} epochs each",
            highlight=False,
        )
    columns = (
        TextColumn("{task.description:9}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and not as_json
    with Progress(*columns, console=console, disable=not shown) as bars:
        tasks = {name: bars.add_task(name, total=len(seeds) * config.epochs) for name in names}

        def progress(name: str, seed: int, record: dict[str, Any]) -> None:
            bars.advance(tasks[name])
            if not shown and not as_json and record["epoch"] == record["epochs"]:
                console.print(f"{name}, seed {seed}: fit {record['fit'] + 1} done", highlight=False)

        rows = compare(config, chosen, seeds, out, teacher=teacher, progress=progress)
    views = "" if config.augment else ", no augmentation"
    title = f"{config.data}, label noise {config.noise}{views}: {config.student} under {teacher}, {len(seeds)} seeds"
    result = {
        "title": title,
        "seeds": list(seeds),
        "config": config.model_dump(mode="json"),
        "rows": [row.as_json() for row in rows],
    }
    text = json.dumps(_strict(result), indent=2, allow_nan=False)
    atomic_write(out / "result.json", text.encode())
    plot_gains([row for row in rows if row.method != TEACHER], out / "gains.png", title)
    if as_json:
        print(json.dumps(_strict(result), allow_nan=False))
        return
    printed = Console()
    printed.print(_table(rows, title))
    printed.print(f"{out / 'result.json'}  {out / 'gains.png'}", highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title, caption="mean ± half of its 95 % t interval; gains are paired by seed, in points")
    for head, side in (
        ("", "left"),
        ("test accuracy, %", "right"),
        ("gain over plain", "right"),
        ("memorised, %", "right"),
    ):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    for row in rows:
        gain = "" if row.gain is None else _interval(row.gain, sign=True)
        memorised = "" if row.memorised is None else _interval(row.memorised)
        table.add_row(row.method, _interval(row.accuracy), gain, memorised, end_section=row.method == TEACHER)
    return table


def _interval(interval: Interval, sign: bool = False) -> str:
    form = "{:+.2f}" if sign else "{:.2f}"
    text = form.format(100 * interval.mean)
    if interval.n == 1:
        return text
    return f"{text} ± {100 * (interval.high - interval.mean):.2f}"


def _strict(value: Any) -> Any:
    """The same without NaN, which JSON does not have: an interval of one seed has no ends."""
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
