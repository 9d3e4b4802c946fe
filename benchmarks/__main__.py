"""Everything that docs/performance.md says in numbers, measured again.

    python -m benchmarks                    all of it, an hour and a quarter on two cores
    python -m benchmarks overhead stored    some of it
    python -m benchmarks --short            only to see that it works

Each writes ``benchmarks/results/NAME.json``, with the machine in it, where there is a GPU ``results/gpu/NAME.json``;
``--short`` writes nothing. Networks are on the GPU, then, but for what is about the processor (``floor``).
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.pairs import Numbers
from benchmarks.processes import imports, memory
from benchmarks.repositories import repositories
from benchmarks.runs import accuracy, methods, research, stored, study
from benchmarks.setting import device
from benchmarks.steps import compiled, floor, loader, overhead, precision
from benchmarks.students import students
from tutelage.config import Hardware
from tutelage.training.hardware import resolve

HERE = Path(__file__).resolve().parent

PARTS: dict[str, Callable[[bool], Numbers]] = {
    part.__name__: part
    for part in (
        overhead,
        floor,
        loader,
        precision,
        compiled,
        research,
        repositories,
        accuracy,
        methods,
        stored,
        students,
        study,
        memory,
        imports,
    )
}


def machine() -> Numbers:
    """What it was measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{models[0]}, {len(models)} of its threads" if models else cpu
    there = device()
    gpu = None if there.type == "cpu" else torch.cuda.get_device_name() if there.type == "cuda" else there.type
    return {
        "processor": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "precision": resolve(Hardware()).precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="How fast tutelage is, as ratios.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which; all of them unless given")
    parser.add_argument("--short", action="store_true", help="as little as shows that it works")
    given = parser.parse_args()
    console = Console()
    folder = HERE / "results" / ("" if device().type == "cpu" else "gpu")
    for name in given.parts or PARTS:
        found = PARTS[name](given.short)
        console.print(_table(name, found))
        if not given.short:
            told = {"command": f"python -m benchmarks {name}", "machine": machine(), "measured": found}
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _table(name: str, found: Numbers) -> Table:
    table = Table(title=f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", title_justify="left")
    for column in ("", "", "ratio", "quartiles", "median, s"):
        table.add_column(column)
    for group, entries in found.items():
        for row, value in entries.items():
            if isinstance(value, dict):
                quartiles = " – ".join(f"{bound:.3f}" for bound in value["quartiles"])
                table.add_row(group, row, f"{value['ratio']:.3f}", quartiles, f"{value['median_seconds']:.3f}")
            else:
                table.add_row(group, row, str(value), "", "")
    return table


if __name__ == "__main__":
    main()
